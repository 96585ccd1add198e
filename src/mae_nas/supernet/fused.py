"""The supernet's cell, computed by source node: the reference's maths in a fraction of its time.

Edges that leave a node share its ReLU, its pools and their statistics, and their depthwise
convolutions read one input. What follows a depthwise convolution is folded into one product, see
`fold`. Nodes are matrices (M, C), a row for each site, and pass between cells unconcatenated; under
sparse masking only visible sites have rows, see `sites`.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn

from mae_nas.backbone import CellSpec, CellState
from mae_nas.masking import VisibleMap
from mae_nas.relaxations import Mixture
from mae_nas.spaces import SearchSpace
from mae_nas.spaces.primitives import (
    FactorizedReduce,
    Noise,
    Pool,
    Primitive,
    ReLUConvBN,
    preprocessors,
)
from mae_nas.supernet import depthwise
from mae_nas.supernet.layers import Layer, SeparableGroup, is_alike, is_bare, is_plain, layer_of
from mae_nas.supernet.pooled import Shared, add_shared
from mae_nas.supernet.reduced import Reduction, add_reduced, corners
from mae_nas.supernet.reference import MixedOp, ReferenceCell
from mae_nas.supernet.separable import Setting, Sums, add_separable
from mae_nas.supernet.sites import Sites, matrix, sites_at, wide


class RowState(CellState):
    """What fused cells hand to each other."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Images, height and width."""

    @abstractmethod
    def rectified(self, sites: Sites) -> Sequence[Tensor]:
        """The state after a ReLU, as matrices (M, C_i) that lie side by side."""


@dataclass(frozen=True, eq=False)
class EntryState(RowState):
    """A map (B, C, H, W) of the stem's."""

    features: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        batch, _, height, width = self.features.shape
        return batch, height, width

    def dense(self) -> Tensor:
        return self.features

    def rectified(self, sites: Sites) -> Sequence[Tensor]:
        return [sites.as_rows(self.features).relu()]


@dataclass(frozen=True, eq=False)
class NodeState(RowState):
    """The nodes that a cell's output is made of, (M, C) each, and the same after a ReLU."""

    nodes: Sequence[Tensor]
    positive: Sequence[Tensor]
    sites: Sites

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.sites.batch, self.sites.height, self.sites.width

    def dense(self) -> Tensor:
        return self.sites.as_map(torch.cat(list(self.nodes), 1))

    def rectified(self, sites: Sites) -> Sequence[Tensor]:
        assert sites is self.sites
        return self.positive


class FusedCell(ReferenceCell):
    """`ReferenceCell` with another forward: the same weights, buffers and results.

    What operations are made of is looked at when the cell is built and by its `train` and `eval`:
    parts are changed and hooks added before one of these. There are first derivatives alone, a cell
    that halves its inputs halves even sides, and operations of a user's own that draw numbers draw
    them in another order.

    Args:
        space: edges and candidates.
        spec: the cell's place in the backbone.
        compiles: whether kernels may be compiled, for a CPU or a GPU.
        recomputes: compute depthwise convolutions again for the backward pass, for memory's sake.
    """

    def __init__(
        self, space: SearchSpace, spec: CellSpec, compiles: bool = True, recomputes: bool = False
    ) -> None:
        super().__init__(space, spec)
        self.compiles, self.recomputes = compiles, recomputes
        self._backend = ""
        self._weights = space.shape(spec.kind)
        self._arrange()

    def train(self, mode: bool = True) -> Self:
        """As torch's; what has changed since is computed as it now is."""
        self._arrange()
        return super().train(mode)

    def _arrange(self) -> None:
        """Sort the candidates by the node that they leave, and by what is computed together."""
        space, count = self.space, self._weights[1]
        self._check()
        candidates = [_candidates(edge) for edge in self.edges]
        if any(len(each) != count for each in candidates):
            raise ValueError("; ".join(space.problems()) or "edges of unequally many candidates")
        operations = [dict(enumerate(each, e * count)) for e, each in enumerate(candidates)]
        by_ends = dict(zip(space.edges, operations, strict=True))
        self._sources = [
            _Source(
                [by_ends.get((source, target), {}) for target in space.concat],
                (self.spec.width, self._stride(source)),
            )
            for source in range(space.inputs + space.nodes)
        ]
        self._norms = [norm for source in self._sources for norm in source.norms]
        self._noises = [
            (choice, source < space.inputs, operation)
            for edge, (source, _) in zip(operations, space.edges, strict=True)
            for choice, operation in edge.items()
            if type(operation) is Noise
        ]

    def _check(self) -> None:
        """Refuse what a forward would pass over: all but candidates is computed as it is known."""
        known: dict[str, nn.Module] = {f"edges.{e}": MixedOp({}) for e in range(len(self.edges))}
        with torch.device("meta"):
            for i, module in enumerate(preprocessors(self.spec)):
                known |= dict(module.named_modules(prefix=f"preprocess{i}"))
        for name, made in known.items():
            # Norms are called, of other numbers too, but not with what a map's would be given.
            is_known = is_bare if isinstance(made, nn.BatchNorm2d) else is_alike
            if not is_known(self.get_submodule(name), made):
                raise RuntimeError(
                    f"fused cell: {name} has hooks or is of another making; "
                    "use efficiency=reference"
                )

    @property
    def implementation(self) -> str:
        if not self._backend:
            return "fused"
        chosen = depthwise.BACKENDS[self._backend]
        groups = [source.separable for source in self._sources if source.separable is not None]
        forms = {kind.form for group in groups for kinds in group.kinds for kind in kinds}
        served = {depthwise.serving(chosen, form).NAME for form in forms}
        return "-".join(["fused", *sorted(served or {self._backend})])

    @staticmethod
    def enter(image_map: Tensor) -> CellState:
        return EntryState(image_map)

    def forward(
        self, before_last: CellState, last: CellState, mixture: Mixture, visible: VisibleMap | None
    ) -> CellState:
        assert isinstance(before_last, RowState)
        assert isinstance(last, RowState)
        device = mixture.ops.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        # Sums, statistics and the fold are in float32 whatever the precision of the rest.
        with torch.autocast(device, enabled=False):
            if mixture.ops.shape != self._weights:
                shape = tuple(mixture.ops.shape)
                raise ValueError(f"mixture: {shape} weights, the cell has {self._weights}")
            return self._forward(before_last, last, mixture.ops.flatten(), visible, dtype)

    def _forward(
        self,
        before_last: RowState,
        last: RowState,
        mixing: Tensor,
        visible: VisibleMap | None,
        dtype: torch.dtype | None,
    ) -> NodeState:
        is_training = self._are_training()
        batch, height, width = last.shape
        ratio = self.spec.stride_out // self.spec.stride_in
        before = sites_at(visible, self.spec.inputs[0].stride, before_last.shape)
        outer = sites_at(visible, self.spec.stride_in, last.shape)
        inner = sites_at(visible, self.spec.stride_out, (batch, height // ratio, width // ratio))
        nodes = [
            _preprocessed(self.preprocess0, before_last.rectified(before), before, outer, dtype),
            _preprocessed(self.preprocess1, last.rectified(outer), outer, outer, dtype),
        ]
        positive = [node.relu() for node in nodes]
        mixing = mixing.to(wide(nodes[0]).dtype)
        noise = self._noise(nodes[0], outer, inner)
        backend = depthwise.choose(nodes[0], self.compiles)
        self._backend = backend.NAME
        width, following = self.spec.width, len(self.space.concat)
        empty = [nodes[0].new_zeros(inner.rows, width) for _ in range(following)]
        sums = Sums(empty, mixing.new_zeros(following, width))
        for j, source in enumerate(self._sources):
            if j >= self.space.inputs:
                node = sums.nodes[j - self.space.inputs] + sums.lacking[j - self.space.inputs]
                nodes.append(inner.masked(node.to(nodes[0].dtype)))
                positive.append(nodes[j].relu())
            here = outer if j < self.space.inputs else inner
            setting = Setting(here, inner, backend, is_training, self.recomputes, dtype)
            source.add_to(sums, nodes[j], positive[j], mixing, setting, noise)
        return NodeState(nodes[self.space.inputs :], positive[self.space.inputs :], inner)

    def _are_training(self) -> bool:
        """Whether norms go by the batch; those of shared operations must agree, as in a cell."""
        found = {(n.training, n.eps, n.momentum, n.affine) for n in self._norms}
        if not found:
            return self.training
        (is_training, _, momentum, affine), *others = found
        if others or momentum is None or affine:
            raise RuntimeError(
                "fused cell: its BatchNorms differ in training, eps or momentum, or have affine "
                "parts; use efficiency=reference"
            )
        return is_training

    def _noise(self, like: Tensor, outer: Sites, inner: Sites) -> Mapping[int, Tensor]:
        """By choice: drawn in the reference's order, since its input's shape is all it needs."""
        drawn = {}
        for choice, enters, operation in self._noises:
            sites = outer if enters else inner
            shape = (sites.batch, sites.height, sites.width, like.shape[1])
            y = operation(like.new_empty(shape).permute(0, 3, 1, 2), None, inner.visible)
            drawn[choice] = inner.as_rows(y)
        return drawn


class _Source:
    """What leaves one node of a cell.

    Args:
        operations: of the edges to each of the nodes that receive sums, the candidates by their
            place among the cell's weights; none where there is no edge.
        place: their channels and stride.
    """

    def __init__(
        self, operations: Sequence[Mapping[int, Primitive]], place: tuple[int, int]
    ) -> None:
        layers: list[Layer] = []
        pools: dict[object, list[tuple[int, int, Pool]]] = {}
        skips: list[tuple[int, int]] = []
        reductions: list[tuple[int, int, FactorizedReduce]] = []
        self.others: list[tuple[int, int, Primitive]] = []
        self.norms: list[nn.BatchNorm2d] = []
        for slot, candidates in enumerate(operations):
            taken: set[object] = set()
            for choice, operation in candidates.items():
                if operation.is_zero:
                    continue
                is_known = is_plain(operation, *place)
                layer = layer_of(slot, choice, operation) if is_known else None
                if layer is None and not (is_known and _may_share(operation, taken)):
                    self.others.append((slot, choice, operation))
                    continue
                self.norms += [n for n in operation.modules() if isinstance(n, nn.BatchNorm2d)]
                if layer is not None:
                    layers.append(layer)
                elif isinstance(operation, Pool):
                    pools.setdefault(operation.pool, []).append((slot, choice, operation))
                elif isinstance(operation, FactorizedReduce):
                    reductions.append((slot, choice, operation))
                else:
                    skips.append((slot, choice))
        self.separable = SeparableGroup(layers) if layers else None
        self.shared = list(_by_edges(pools, skips))
        self.reduction = Reduction(*zip(*reductions, strict=True)) if reductions else None

    def add_to(
        self,
        sums: Sums,
        h: Tensor,
        positive: Tensor,
        mixing: Tensor,
        setting: Setting,
        noise: Mapping[int, Tensor],
    ) -> None:
        """Add all that leaves the node `h` to the sums."""
        source, target = setting.source, setting.target
        if self.separable is not None:
            add_separable(self.separable, setting, positive, mixing, sums)
        if self.reduction is not None:
            add_reduced(self.reduction, setting, positive, mixing, sums)
        for shared in self.shared:
            add_shared(shared, setting, h, mixing, sums)
        for slot, choice, operation in self.others:
            y = noise.get(choice)
            if y is None:
                is_half = setting.precision is not None
                with torch.autocast(h.device.type, setting.precision, enabled=is_half):
                    y = operation(source.as_map(h), source.visible, target.visible)
                y = target.as_rows(y)
            so_far = sums.nodes[slot]
            sums.nodes[slot] = so_far + (mixing[choice].to(y.dtype) * y).to(so_far.dtype)


def _may_share(operation: Primitive, taken: set[object]) -> bool:
    """Whether other edges' operations can be computed with it: one of each kind, on an edge."""
    kind = operation.pool if isinstance(operation, Pool) else type(operation)
    if kind in taken:
        return False
    taken.add(kind)
    return True


def _by_edges(
    pools: Mapping[object, Sequence[tuple[int, int, Pool]]], skips: Sequence[tuple[int, int]]
) -> Iterator[Shared]:
    """Pools and skip of a node, together where they have the same edges."""
    slots_of = {kind: tuple(slot for slot, _, _ in same) for kind, same in pools.items()}
    skipped = tuple(slot for slot, _ in skips)
    together: list[tuple[int, ...]] = [*slots_of.values(), *([skipped] if skips else [])]
    for slots in dict.fromkeys(together):
        alike = [same for kind, same in pools.items() if slots_of[kind] == slots]
        choices = [choice for same in alike for _, choice, _ in same]
        choices += [choice for _, choice in skips] if slots == skipped else []
        firsts = [same[0][2] for same in alike]
        stride = firsts[0].stride if firsts else 1
        norms = tuple(pool.norm for same in alike for _, _, pool in same)
        kinds = tuple(pool.pool for pool in firsts)
        yield Shared(slots, tuple(choices), kinds, stride, norms)


def _candidates(edge: nn.Module) -> list[Primitive]:
    assert isinstance(edge, MixedOp)
    for name, candidate in edge.candidates.items():
        if not isinstance(candidate, Primitive):
            raise TypeError(f"{name}: is a {type(candidate).__name__}, not a Primitive")
    return cast("list[Primitive]", list(edge.candidates.values()))


def _preprocessed(
    module: nn.Module,
    pieces: Sequence[Tensor],
    source: Sites,
    target: Sites,
    dtype: torch.dtype | None,
) -> Tensor:
    """What `ReLUConvBN` or `FactorizedReduce` makes of pieces that lie side by side: (M, C)."""
    if isinstance(module, ReLUConvBN):
        y = _product(pieces, module.conv.weight, dtype)
    else:
        assert isinstance(module, FactorizedReduce)
        even, odd = corners(pieces, source, target)
        halves = ((even, module.even), (odd, module.odd))
        y = torch.cat([_product(half, conv.weight, dtype) for half, conv in halves], 1)
    return target.normalised(module.norm, y)


def _product(pieces: Sequence[Tensor], weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Pointwise convolution of a concatenation that does not exist."""
    pieces = [piece.to(dtype or piece.dtype) for piece in pieces]
    parts = matrix(weight).to(pieces[0].dtype).split([piece.shape[1] for piece in pieces], 1)
    y = pieces[0] @ parts[0].T
    for piece, part in zip(pieces[1:], parts[1:], strict=True):
        y = torch.addmm(y, piece, part.T)
    return y
