"""What each choice of a space adds to a network's multiply-adds and parameters, from shapes alone.

Both add over edges: the preprocessors of every cell, the stem and the classifier are there whatever
is chosen. The auxiliary head is not counted, see `mae_nas.network.complexity.Complexity`.
"""

from functools import lru_cache

import numpy as np
import torch

from mae_nas.genotype import CellGenotype, Edge, Genotype
from mae_nas.network.cell import settled
from mae_nas.network.complexity import (
    Complexity,
    Place,
    complexity_of,
    count_multiply_adds,
    count_parameters,
)
from mae_nas.spaces import SearchSpace
from mae_nas.spaces.budgets import CostTable
from mae_nas.spaces.primitives import PRIMITIVES

COUNTED = ("macs", "params")


def cost_tables(space: SearchSpace, place: Place) -> dict[str, CostTable]:
    """Those of `COUNTED`, and `skips`: how many skip connections the normal cell has."""
    empty = _nothing(space)
    base = place_complexity(space, place, empty)

    @lru_cache
    def cost(name: str, width: int, stride: int, side: int) -> tuple[int, int]:
        with torch.device("meta"):
            operation = settled(space.make(name, width, stride)).eval()
            x = torch.empty(1, width, side, side)
            macs = count_multiply_adds(lambda: operation(x, None, None))
        return macs, count_parameters(operation)

    tables = {kind: np.zeros((2, *space.shape(kind)), np.int64) for kind in empty.cells}
    zero = {kind: np.array(space.flags(kind, "is_zero")) for kind in empty.cells}
    for spec in place.size.plan(empty, place.side).cells:
        for e, (source, _) in enumerate(space.edges):
            stride = 2 if spec.is_reduction and source < space.inputs else 1
            side = place.side // (spec.stride_in if source < space.inputs else spec.stride_out)
            for k, name in enumerate(space.primitives(spec.kind)[e]):
                if not zero[spec.kind][e, k]:
                    tables[spec.kind][:, e, k] += cost(name, spec.width, stride, side)
    skips = {kind: np.zeros(space.shape(kind), np.int64) for kind in empty.cells}
    skips["normal"] += np.array(space.flags("normal", "is_skip"))
    counted = {
        name: CostTable(getattr(base, name), {kind: table[row] for kind, table in tables.items()})
        for row, name in enumerate(COUNTED)
    }
    return {**counted, "skips": CostTable(0, skips)}


def place_complexity(space: SearchSpace, place: Place, genotype: Genotype) -> Complexity:
    """Of the network that the space's own operations make."""
    return complexity_of(
        lambda: place.network(genotype, {**PRIMITIVES, **space.operations()}),
        place.channels,
        place.side,
    )


def _nothing(space: SearchSpace) -> Genotype:
    """Cells of the same inputs and outputs in which no operation is."""
    edges = tuple(Edge("none", 0, target) for target in space.concat)
    cell = CellGenotype(edges, space.concat, space.inputs)
    return Genotype(cell, cell)
