"""Exact statistics of few seeds: counts against chance, two arms, agreement of cells."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np

from mae_nas.spaces import SearchSpace

SIGNIFICANCE = 0.05
DIFFERENCES = """Differences are of means, with the shifts that an exact permutation test does not
refute (95 %) and its p (two-sided: twice the smaller tail). Arms are compared as if their seeds
were not the same: seeds that make both arms high or low hide differences, and feign none. Each p is
of one comparison, not corrected for their number.
"""
MOST_DIVISIONS = 5_000_000


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
    """Exact two-sided p of a difference between means: twice the smaller tail of all divisions."""
    differences, _ = divisions(pairs)
    above = np.mean(differences >= differences[0] - 1e-12)
    below = np.mean(differences <= differences[0] + 1e-12)
    return float(min(1.0, 2 * above, 2 * below))


def permutation_interval(pairs: Pairs) -> tuple[float, float]:
    """The shifts between two arms that `permutation_p` does not refute at 5 %.

    A division's difference passes ours at one shift: so the ends are quantiles of those.
    """
    differences, slopes = divisions(pairs)
    others = slopes < 1 - 1e-12
    shifts = np.sort((differences[0] - differences[others]) / (1 - slopes[others]))
    rank = int(SIGNIFICANCE / 2 * len(differences))
    return (float(shifts[rank - 1]), float(shifts[-rank])) if rank else (-math.inf, math.inf)


def told(p: float) -> str:
    """A p to be read."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}"


def verdict(p: float) -> str:
    """A p, and whether it tells anything."""
    return told(p) + ("" if p <= SIGNIFICANCE else ": not distinguishable")


def compared(one: Sequence[float], other: Sequence[float], digits: int = 2) -> str:
    """The difference of two arms in words, with its interval and whether it can be told."""
    return compared_within([(one, other)], digits)


def compared_within(pairs: Pairs, digits: int = 2) -> str:
    """The same, of the mean difference within strata."""
    difference = np.mean([np.mean(one) - np.mean(other) for one, other in pairs])
    words = f"{difference:+.{digits}f}"
    count = math.prod(math.comb(len(a) + len(b), len(a)) for a, b in pairs)
    if count > MOST_DIVISIONS:
        return f"{words}: too many divisions ({count:.0e}) to be exact"
    if 2 / count > SIGNIFICANCE:
        return f"{words}: too few seeds to tell"
    if all(len({*values}) == 1 for pair in pairs for values in pair):
        return f"{words} (no spread in either arm), {verdict(permutation_p(pairs))}"
    low, high = permutation_interval(pairs)
    interval = f"[{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"{words} {interval}, {verdict(permutation_p(pairs))}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation over seeds; a single value alone."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def detectable(seeds: int, strata: int = 1, power: float = 0.8) -> float:
    """The difference of two arms, in their standard deviation, that is told with this power.

    By simulated repeats of normal values, `seeds` a side in each stratum, each tested at 5 % by its
    divisions (all, or ours and 2,000 random ones); to a tenth. Infinite where no values at all
    would be significant.
    """
    generator = np.random.default_rng(0)
    count = math.comb(2 * seeds, seeds) ** strata
    if 2 / count > SIGNIFICANCE:
        return math.inf
    if strata == 1:
        arms = np.zeros((count, 2 * seeds))
        for row, mine in zip(arms, combinations(range(2 * seeds), seeds), strict=True):
            row[list(mine)] = 1
    else:
        first = np.repeat([1.0, 0.0], seeds)
        ranks = generator.random((2001, strata, 2 * seeds)).argsort(-1)
        arms = np.take(first, ranks)
        arms[0] = first
        arms = arms.reshape(len(arms), -1)
    noise = generator.standard_normal((1000, arms.shape[1]))
    for tenths in range(1, 100):
        away = np.abs((noise + tenths / 10 * arms[0]) @ (2 * arms - 1).T)
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


def shared(one: Cells, other: Cells) -> tuple[int, int, int]:
    """How many two genotypes share of edges, of edges with their operations, and of operations.

    The last wherever they stand, by kind of cell.
    """
    edges = {edge[:3] for edge in one} & {edge[:3] for edge in other}
    kinds = [Counter((edge[0], edge[3]) for edge in cells) for cells in (one, other)]
    return len(edges), len(one & other), (kinds[0] & kinds[1]).total()


def agreement(cells: Sequence[Cells]) -> tuple[float, ...]:
    """What `shared` gives of these, means over pairs."""
    pairs = [shared(one, other) for one, other in combinations(cells, 2)]
    return tuple(map(float, np.mean(pairs, axis=0)))


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


def agreement_by_chance(cells: Sequence[Cells], draws: int = 1000) -> Iterator[tuple[float, ...]]:
    """What `agreement` gives once each genotype is permuted on its own; the same every time.

    Each keeps its own operations: chance is of where they stand.
    """
    generator = np.random.default_rng(0)
    for _ in range(draws):
        yield agreement([permuted(each, generator) for each in cells])


def kinship(one: Sequence[Cells], other: Sequence[Cells]) -> list[tuple[float, float]]:
    """By how much more cells agree within two arms than between them, and its exact p.

    For each measure of `shared`; p by every division of all cells in two arms.
    """
    cells = [*one, *other]
    alike = np.array([[shared(a, b) for b in cells] for a in cells], float)

    def excess(mine: Sequence[int]) -> np.ndarray:
        rest = [i for i in range(len(cells)) if i not in mine]
        within = [alike[a, b] for arm in (mine, rest) for a, b in combinations(arm, 2)]
        return np.mean(within, axis=0) - alike[np.ix_(mine, rest)].mean((0, 1))

    found = np.array([excess(mine) for mine in combinations(range(len(cells)), len(one))])
    return [(float(column[0]), float(np.mean(column >= column[0] - 1e-9))) for column in found.T]
