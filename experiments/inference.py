"""Exact statistics of few seeds: counts against chance, two arms, agreement of cells."""

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np

from mae_nas.spaces import SearchSpace

SIGNIFICANCE = 0.05
DIFFERENCES = """Differences are of means, with the shifts that an exact permutation test does not
refute (95 %) and its p. Each p is of one comparison, not corrected for their number.
"""


def chance_of_a_skip(space: SearchSpace) -> Fraction:
    """That a kept edge of the normal cell is a skip, where noise α are derived.

    Exact: an edge is kept for the size of its largest weight, which says nothing of whose it is, so
    that each candidate but `none` is as likely and kept edges are independent. For spaces in which
    all edges have the same candidates.
    """
    skips, zeros = space.flags("normal", "is_skip"), space.flags("normal", "is_zero")
    shares = {
        Fraction(sum(skip), len(zero) - sum(zero)) for skip, zero in zip(skips, zeros, strict=True)
    }
    if len(shares) > 1:
        raise ValueError(f"{type(space).__name__}: its edges differ in their candidates")
    return shares.pop()


def against_chance(space: SearchSpace, skips: Sequence[int], edges: int = 8) -> float:
    """Exact two-sided binomial p: a total of skips that is no likelier than this one, by noise."""
    p, kept = chance_of_a_skip(space), edges * len(skips)
    likelihood = [math.comb(kept, k) * p**k * (1 - p) ** (kept - k) for k in range(kept + 1)]
    return float(sum(each for each in likelihood if each <= likelihood[sum(skips)]))


Pairs = Sequence[tuple[Sequence[float], Sequence[float]]]
"""Two arms' values in each stratum, within which alone they may be exchanged."""


def divisions(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Every way to divide each stratum's values anew, ours first.

    Returns the difference of the two arms' means, averaged over strata; and by how much it falls
    when the first arm's values are lowered by 1.
    """
    differences = slopes = np.zeros(1)
    for one, other in pairs:
        values, n, m = np.array([*one, *other]), len(one), len(other)
        mine = np.array(list(combinations(range(n + m), n)))
        share, shifted = values[mine].sum(1), (mine < n).sum(1)
        difference = share / n - (values.sum() - share) / m
        slope = shifted / n - (n - shifted) / m
        differences = np.add.outer(differences, difference / len(pairs)).ravel()
        slopes = np.add.outer(slopes, slope / len(pairs)).ravel()
    return differences, slopes


def permutation_p(pairs: Pairs) -> float:
    """Exact two-sided p of a difference between means: every division of the values."""
    differences, _ = divisions(pairs)
    return float(np.mean(np.abs(differences) >= abs(differences[0]) - 1e-12))


def permutation_interval(pairs: Pairs) -> tuple[float, float]:
    """The shifts between two arms that an exact permutation test does not refute at 2.5 % a side.

    A division's difference passes ours at one shift: so the ends are quantiles of those.
    """
    differences, slopes = divisions(pairs)
    others = slopes < 1 - 1e-12
    shifts = np.sort((differences[0] - differences[others]) / (1 - slopes[others]))
    rank = int(SIGNIFICANCE / 2 * len(differences))
    return (float(shifts[rank - 1]), float(shifts[-rank])) if rank else (-math.inf, math.inf)


def told(p: float) -> str:
    """A p to be read."""
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def compared(one: Sequence[float], other: Sequence[float], digits: int = 2) -> str:
    """The difference of two arms in words, with its interval and whether it can be told."""
    return compared_within([(one, other)], digits)


def compared_within(pairs: Pairs, digits: int = 2) -> str:
    """The same, of the mean difference within strata."""
    difference = np.mean([np.mean(one) - np.mean(other) for one, other in pairs])
    words = f"{difference:+.{digits}f}"
    if 2 / math.prod(math.comb(len(a) + len(b), len(a)) for a, b in pairs) > SIGNIFICANCE:
        return f"{words}: too few seeds to tell"
    low, high = permutation_interval(pairs)
    p = permutation_p(pairs)
    words += f" [{low:+.{digits}f}, {high:+.{digits}f}], p = {told(p)}"
    return words if p < SIGNIFICANCE else f"{words}: not distinguishable"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation over seeds; a single value alone."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def detectable(seeds: int, power: float = 0.8) -> float:
    """The difference of two arms, in their standard deviation, that is told with this power.

    By 2,000 simulated repeats of normal values, `seeds` a side, each with its exact permutation
    test at 5 %; to a tenth. Infinite where no values at all would be significant.
    """
    divisions = np.zeros((math.comb(2 * seeds, seeds), 2 * seeds))
    for row, mine in zip(divisions, combinations(range(2 * seeds), seeds), strict=True):
        row[list(mine)] = 1
    if 2 / len(divisions) > SIGNIFICANCE:
        return math.inf
    noise = np.random.default_rng(0).standard_normal((2000, 2 * seeds))
    for tenths in range(1, 100):
        values = noise + tenths / 10 * divisions[0]
        away = np.abs(2 * values @ divisions.T - values.sum(1, keepdims=True))
        p = np.mean(away >= away[:, :1] - 1e-9, axis=1)
        if np.mean(p <= SIGNIFICANCE) >= power:
            return tenths / 10
    return math.inf


Cells = frozenset[tuple[str, int, int, str]]
"""Both cells of a genotype: kind, target, source and operation of each kept edge."""


def cells_of(genotype: Mapping[str, Any]) -> Cells:
    """Of a genotype's JSON document."""
    return frozenset(
        (kind, edge["target"], edge["source"], edge["primitive"])
        for kind in ("normal", "reduce")
        for edge in genotype[kind]["edges"]
    )


def shared(one: Cells, other: Cells) -> tuple[int, int]:
    """How many edges two genotypes share, and how many with their operation."""
    edges = {edge[:3] for edge in one} & {edge[:3] for edge in other}
    return len(edges), len(one & other)


def agreement(cells: Sequence[Cells]) -> tuple[float, float]:
    """Edges, and operations on the same edges, that two of these share: means over pairs."""
    pairs = [shared(one, other) for one, other in combinations(cells, 2)]
    edges, operations = np.mean(pairs, axis=0)
    return float(edges), float(operations)


def permuted(cells: Cells, generator: np.random.Generator) -> Cells:
    """As many edges to each node, of any of its possible sources; their operations mixed."""
    edges: list[tuple[str, int, int]] = []
    operations: list[str] = []
    for kind in ("normal", "reduce"):
        mine = sorted(edge for edge in cells if edge[0] == kind)
        for target in sorted({target for _, target, *_ in mine}):
            kept = sum(edge[1] == target for edge in mine)
            sources = generator.choice(target, kept, replace=False)
            edges += [(kind, target, int(source)) for source in sources]
        names = [name for *_, name in mine]
        operations += [names[i] for i in generator.permutation(len(names))]
    return frozenset((*edge, name) for edge, name in zip(edges, operations, strict=True))


def agreement_by_chance(cells: Sequence[Cells], draws: int = 1000) -> Iterator[tuple[float, float]]:
    """What `agreement` gives once each genotype is permuted on its own; the same every time."""
    generator = np.random.default_rng(0)
    for _ in range(draws):
        yield agreement([permuted(each, generator) for each in cells])


def kinship(one: Sequence[Cells], other: Sequence[Cells]) -> tuple[float, float]:
    """By how much more cells agree within two arms than between them, and its exact p.

    Agreement is in edges with their operations; p by every division of all cells in two arms.
    """
    cells = [*one, *other]
    alike = np.array([[shared(a, b)[1] for b in cells] for a in cells], float)

    def excess(mine: Sequence[int]) -> float:
        rest = [i for i in range(len(cells)) if i not in mine]
        within = [alike[a, b] for arm in (mine, rest) for a, b in combinations(arm, 2)]
        return float(np.mean(within) - alike[np.ix_(mine, rest)].mean())

    divisions = combinations(range(len(cells)), len(one))
    found = [excess(mine) for mine in divisions]  # ours is the first
    return found[0], float(np.mean([each >= found[0] - 1e-9 for each in found]))
