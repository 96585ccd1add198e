"""Strengths to a genotype, by DARTS's rule (DARTS, Sec. 2.4)."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mae_nas.backbone import CELL_KINDS
from mae_nas.genotype import CellGenotype, Edge, Genotype, read_genotype
from mae_nas.randomness import Purpose, derive_key
from mae_nas.spaces import SearchSpace


class Choice(NamedTuple):
    """What the rule picks in N cells at once.

    Shapes:
        primitive: (N, E), the strongest candidate of each edge, `none` set aside.
        kept: (N, kept), edges kept, node by node, strongest first.
        strength: (N, E), the mixing weight of that candidate.
    """

    primitive: NDArray[np.int64]
    kept: NDArray[np.int64]
    strength: NDArray[np.float64]


def choose(scores: NDArray[np.float64], space: SearchSpace, kind: str) -> Choice:
    """DARTS's rule: per edge the strongest candidate, per node the strongest edges.

    `none` takes part in the softmax but is never chosen; ties go to the lower index.

    Shapes:
        scores: (N, E, K), mixing weights of N cells of one kind.
    """
    zero = np.array(space.flags(kind, "is_zero"))
    eligible = np.where(zero, -np.inf, scores)
    primitive = eligible.argmax(axis=2)
    strength = eligible.max(axis=2)
    kept = []
    for target in space.concat:
        edges = np.array([edge for edge, _, _ in space.incoming(target)])
        order = np.argsort(-strength[:, edges], axis=1, kind="stable")
        kept.append(edges[order[:, : space.kept_edges]])
    return Choice(primitive, np.concatenate(kept, axis=1), strength)


def derive(
    scores: Mapping[str, NDArray[np.float64]], space: SearchSpace
) -> tuple[Genotype, dict[str, float]]:
    """The genotype of a search, and each cell's score: the sum of its chosen mixing weights.

    Args:
        scores: (E, K) mixing weights per kind of cell.
        space: the space they belong to.
    """
    cells, totals = {}, {}
    for kind, table in scores.items():
        choice = choose(table[None], space, kind)
        names = space.primitives(kind)
        kept = choice.kept[0]
        edges = tuple(
            Edge(names[e][int(choice.primitive[0, e])], *space.edges[e]) for e in map(int, kept)
        )
        cells[kind] = CellGenotype(edges, space.concat, space.inputs)
        totals[kind] = float(choice.strength[0, kept].sum())
    return Genotype(**cells), totals


RANDOM = "random:"


def named_genotype(text: str, space: SearchSpace) -> Genotype:
    """What `read_genotype` reads, or the random cells of the space that `random:SEED` names."""
    if not text.startswith(RANDOM):
        return read_genotype(text)
    seed = text.removeprefix(RANDOM)
    if not re.fullmatch(r"[0-9]{1,9}", seed):
        raise ValueError(
            f"genotype: {text[:100]!r}: needs a whole number below a billion, e.g. random:0"
        )
    return random_genotype(space, int(seed))


def random_genotype(space: SearchSpace, seed: int) -> Genotype:
    """The cells that noise derives: by DARTS's rule, each edge and candidate as likely."""
    generator = np.random.default_rng(derive_key(Purpose.GENOTYPE, seed) % 2**63)
    noise = {kind: generator.standard_normal(space.shape(kind)) for kind in CELL_KINDS}
    return derive(noise, space)[0]
