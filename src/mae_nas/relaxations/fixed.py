"""One given cell instead of a mixture: the same network, data, masks and loss train it alone."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mae_nas.genotype import Genotype
from mae_nas.relaxations.base import Mixture, Relaxation
from mae_nas.spaces import SearchSpace
from mae_nas.spaces.derivation import named_genotype
from mae_nas.spaces.primitives import PRIMITIVES, Primitive

_NONE = "none"


class Fixed(Relaxation):
    """A constant one-hot mixture; α is never stepped, and what was not chosen does not exist.

    Args:
        space: that the genotype is from.
        genotype: a file, run folder, published name or DARTS's text, or
            `random:SEED`, see `named_genotype`.
    """

    learns = False

    def __init__(self, space: SearchSpace, genotype: str) -> None:
        one_cell = _OneCell(space, named_genotype(genotype, space))
        super().__init__(one_cell)
        self._scores = {kind: one_cell.among(space, kind) for kind in self.alphas}

    def mixture(self) -> dict[str, Mixture]:
        return {kind: Mixture(torch.ones_like(alpha)) for kind, alpha in self.alphas.items()}

    def scores(self) -> dict[str, Tensor]:
        """One-hot over the candidates of the space that the genotype is from."""
        return {kind: scores.clone() for kind, scores in self._scores.items()}


class _OneCell(SearchSpace):
    """The space that has one candidate on each edge: the genotype's operation, or none."""

    def __init__(self, space: SearchSpace, genotype: Genotype) -> None:
        space.check(genotype)
        self.inputs, self.nodes, self.kept_edges = space.inputs, space.nodes, space.kept_edges
        self._operations = {_NONE: PRIMITIVES[_NONE], **space.operations()}
        self._names: dict[str, list[list[str]]] = {}
        for kind, cell in genotype.cells.items():
            chosen = {(edge.source, edge.target): edge.primitive for edge in cell.edges}
            degrees = {node: [t for _, t in chosen].count(node) for node in space.concat}
            if set(cell.concat) != set(space.concat):
                raise ValueError(
                    f"genotype: {kind} cell: concatenates nodes {sorted(cell.concat)}, those of "
                    f"{type(space).__name__} are {list(space.concat)}"
                )
            if len(chosen) < len(cell.edges) or set(degrees.values()) != {space.kept_edges}:
                raise ValueError(
                    f"genotype: {kind} cell: every node of {type(space).__name__} keeps "
                    f"{space.kept_edges} different edges, these are "
                    + ", ".join(f"{count} at node {node}" for node, count in degrees.items())
                )
            self._names[kind] = [[chosen.get(edge, _NONE)] for edge in space.edges]

    def primitives(self, kind: str) -> Sequence[Sequence[str]]:
        return self._names[kind]

    def among(self, space: SearchSpace, kind: str) -> Tensor:
        """1 for each chosen operation among the candidates of `space`, else 0: (E, K)."""
        rows = zip(space.primitives(kind), self.primitives(kind), strict=True)
        return torch.tensor([[float(name in chosen) for name in names] for names, chosen in rows])

    def operations(self) -> Mapping[str, Callable[[int, int], Primitive]]:
        return self._operations
