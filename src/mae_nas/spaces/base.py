"""What a search space is: the graph of a cell and the candidates of each edge."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import torch

from mae_nas.backbone import CELL_KINDS
from mae_nas.genotype import Genotype
from mae_nas.spaces.primitives import PRIMITIVES, Primitive


class SearchSpace(ABC):
    """Cells of two inputs and further nodes, each joined to all before it (DARTS, Sec. 2.1).

    A subclass names the candidate primitives of every edge and may bring operations of its own.
    All edges of one kind of cell have equally many candidates.
    """

    inputs = 2
    nodes = 4
    kept_edges = 2
    """Edges that derivation keeps at each node."""

    @abstractmethod
    def primitives(self, kind: str) -> Sequence[Sequence[str]]:
        """Candidate names per edge of a `normal` or `reduce` cell, in the order of `edges`."""

    def operations(self) -> Mapping[str, Callable[[int, int], Primitive]]:
        """Makers (channels, stride) -> operation by name; override to bring your own."""
        return PRIMITIVES

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(source, target) of every edge, by target, then source: nodes 0 and 1 are the inputs."""
        return tuple(
            (source, target)
            for target in range(self.inputs, self.inputs + self.nodes)
            for source in range(target)
        )

    def incoming(self, target: int) -> list[tuple[int, int, bool]]:
        """(edge, source, whether the source is one of the cell's inputs) of a node's edges."""
        return [
            (edge, source, source < self.inputs)
            for edge, (source, node) in enumerate(self.edges)
            if node == target
        ]

    @property
    def concat(self) -> tuple[int, ...]:
        """The nodes whose channels make up a cell's output."""
        return tuple(range(self.inputs, self.inputs + self.nodes))

    def shape(self, kind: str) -> tuple[int, int]:
        """(edges, candidates per edge) of a kind of cell."""
        candidates = self.primitives(kind)
        return len(candidates), len(candidates[0])

    def problems(self) -> Iterator[str]:
        """What is ill-formed in a subclass, a line each."""
        for kind in CELL_KINDS:
            candidates = self.primitives(kind)
            sizes = [len(names) for names in candidates]
            if not sizes or not sizes[0] or sizes != sizes[:1] * len(self.edges):
                yield (
                    f"{type(self).__name__}.primitives({kind!r}): needs {len(self.edges)} edges "
                    f"with equally many candidates, got {sizes}"
                )
            twice = sorted({n for names in candidates for n in names if names.count(n) > 1})
            if twice:
                yield (
                    f"{type(self).__name__}.primitives({kind!r}): twice on an edge: "
                    f"{', '.join(twice)}; give the second another name in operations()"
                )
        named = {n for kind in CELL_KINDS for names in self.primitives(kind) for n in names}
        known = self.operations()
        for name in sorted(named - known.keys()):
            yield f"{type(self).__name__}: no operation {name}; known: {', '.join(known)}"

    def make(self, name: str, channels: int, stride: int) -> Primitive:
        """The operation `name` for `channels` channels at `stride` 1 or 2."""
        return self.operations()[name](channels, stride)

    def flags(self, kind: str, flag: str) -> list[list[bool]]:
        """Per edge and candidate, whether the operation `is_zero`, `is_skip` or `is_random`."""
        return [
            [bool(getattr(self._samples[name], flag)) for name in names]
            for names in self.primitives(kind)
        ]

    @cached_property
    def _samples(self) -> Mapping[str, Primitive]:
        """One operation of each name, without storage or random numbers, to read its flags."""
        names = {name for kind in CELL_KINDS for names in self.primitives(kind) for name in names}
        with torch.device("meta"):
            return {name: self.make(name, 2, 1) for name in sorted(names)}

    def check(self, genotype: Genotype) -> None:
        """ValueError unless the genotype's every edge and operation exists in this space."""
        for kind, cell in genotype.cells.items():
            where = dict(zip(self.edges, self.primitives(kind), strict=True))
            zeros = {name for name, sample in self._samples.items() if sample.is_zero}
            for edge in cell.edges:
                allowed = set(where.get((edge.source, edge.target), ())) - zeros
                if edge.primitive not in allowed:
                    raise ValueError(
                        f"{kind} cell: {edge.primitive} on edge {edge.source}→{edge.target} is not "
                        f"in {type(self).__name__} ({', '.join(sorted(allowed)) or 'no such edge'})"
                    )
            if cell.inputs != self.inputs or not set(cell.concat) <= set(self.concat):
                raise ValueError(f"{kind} cell: its nodes are not those of {type(self).__name__}")
