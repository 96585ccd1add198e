"""All separable convolutions that leave one node, towards every node that follows.

    z_1 = depthwise(r)                 first layers of sep_conv
    u   = ReLU(W'_1 z_1 + b_1)         their pointwise products and norms, folded
    z_2 = depthwise(u), depthwise(r)   second layers of sep_conv; dil_conv
    node_t += W'_2 z_2 + b_2           pointwise products, norms and mixing weights, folded

r is the node after its ReLU. An edge's z_2 lie side by side in one matrix, so that one product
serves the edge. The backward pass needs r, u, z_1 and z_2, and can compute the last two again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mae_nas.spaces.primitives import DepthwiseSeparable
from mae_nas.supernet.depthwise import Convolutions, serving
from mae_nas.supernet.fold import Affine, Fold, Moments, Norms
from mae_nas.supernet.layers import SeparableGroup
from mae_nas.supernet.sites import Sites, in_full_precision, index, matrix, wide

Rows = Sequence[Tensor] | Tensor
"""A matrix (M, C) for each member."""

_MEAN_OF_U = 0.4  # 1/√(2π), of the positive part of a normal variable


@dataclass(frozen=True, eq=False)
class Setting:
    """Where and how a group is computed.

    Args:
        source: sites of r.
        target: sites of the nodes that follow.
        backend: of the depthwise convolutions.
        is_training: norms by the batch, not by running statistics.
        recomputes: whether z_1 and z_2 are computed again for the backward pass.
        precision: of autocast; None without.
    """

    source: Sites
    target: Sites
    backend: ModuleType
    is_training: bool
    recomputes: bool = False
    precision: torch.dtype | None = None


@dataclass(eq=False)
class Sums:
    """What the nodes that follow have received so far.

    Args:
        nodes: per edge to one of them, (M', C).
        lacking: what each of their rows still lacks, (edges, C).
    """

    nodes: list[Tensor]
    lacking: Tensor

    def add(self, slots: Iterable[int], function: Callable[..., tuple[Tensor, ...]]) -> None:
        """By a function of the nodes at these edges, then of `lacking`, which changes them all."""
        slots = list(slots)
        *here, self.lacking = function(*[self.nodes[slot] for slot in slots], self.lacking)
        for slot, node in zip(slots, here, strict=True):
            self.nodes[slot] = node


def add_separable(
    group: SeparableGroup, setting: Setting, r: Tensor, mixing: Tensor, sums: Sums
) -> None:
    """Add all layers' outputs to the nodes that they lead to.

    Args:
        group: of layers.
        setting: of the computation.
        r: (M, C); 0 at hidden rows.
        mixing: weights of all candidates of the cell, flat.
        sums: changed in place.
    """
    weights = [kind.weight(r.dtype) for kinds in group.kinds for kind in kinds]
    points = [
        torch.stack([matrix(layer.pointwise.weight) for layer in layers]).to(mixing.dtype)
        if layers
        else None
        for layers in (group.firsts, group.lasts)
    ]
    chosen = mixing[index(group.choices, r.device), None]
    function = partial(_Separable.apply, group, setting, r, chosen, *points, *weights)
    sums.add((slot for slot, _ in group.edges), function)


class _Separable(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's
        group: SeparableGroup,
        setting: Setting,
        r: Tensor,
        mixing: Tensor,
        first_points: Tensor | None,
        last_points: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        count = sum(map(len, group.kinds))
        weights, nodes, lacking = rest[:count], rest[count:-1], rest[-1]
        step = _Step(group, setting, r, weights)
        z1 = u = first = None
        if group.firsts:
            assert first_points is not None
            z1 = step.first_layers()
            first = step.fold(step.moments(z1), group.firsts, first_points, None, step.first_shift)
            u = torch.baddbmm(step.cast(first.bias)[:, None], z1, step.cast(first.product).mT)
            u = setting.target.masked(u.relu_())
        z2 = step.last_layers(u)
        last = step.fold(step.moments(z2), group.lasts, last_points, mixing, step.last_shift)
        for node, z, product in zip(nodes, z2, group.by_edge(step.cast(last.product)), strict=True):
            node.addmm_(z, product.mT.flatten(0, 1))
        lacking.index_add_(0, index(group.slots, r.device), last.bias)
        ctx.mark_dirty(*nodes, lacking)
        kept = [] if setting.recomputes else [z1, *z2]
        ctx.save_for_backward(r, u, *weights, *kept)
        ctx.group, ctx.setting, ctx.folds = group, setting, (first, last)
        return (*nodes, lacking)

    @staticmethod
    @in_full_precision
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - torch's
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        group, setting, (first, last) = ctx.group, ctx.setting, ctx.folds
        r, u, *others = ctx.saved_tensors
        count = sum(map(len, group.kinds))
        weights, kept = others[:count], others[count:]
        *to_nodes, to_lacking = gradients
        _, _, _, wants_mixing, wants_first, wants_last, *wants = ctx.needs_input_grad
        step = _Step(group, setting, r, weights, wants_weights=any(wants[:count]))
        z1, *z2 = kept or [step.first_layers() if group.firsts else None, *step.last_layers(u)]
        to_r = torch.zeros_like(r)

        to_z2, to_last, to_mixing = step.through_nodes(
            last, z2, to_nodes, to_lacking, wants_last, wants_mixing
        )
        to_members = group.members(to_z2)
        to_direct = step.back(2, to_members, [r] * len(to_members), [to_r] * len(to_members))
        to_first_points, to_weights = None, to_direct
        if first is not None:
            to_u = torch.zeros_like(u)
            to_chained = step.back(1, to_members, u, to_u)
            to_z1, to_first_points = step.through_relu(first, z1, u, to_u, wants_first)
            to_first = step.back(0, to_z1, [r] * len(z1), [to_r] * len(z1))
            to_weights = [*to_first, *to_chained, *to_direct]
        to_points = (to_first_points, to_last)
        return (None, None, to_r, to_mixing, *to_points, *to_weights, *to_nodes, to_lacking)


class _Step:
    """What both passes of one group do."""

    def __init__(
        self,
        group: SeparableGroup,
        setting: Setting,
        r: Tensor,
        weights: Sequence[Tensor],
        wants_weights: bool = False,
    ) -> None:
        self.group, self.setting, self.r, self.wants_weights = group, setting, r, wants_weights
        cuts = [len(kinds) for kinds in group.kinds]
        starts = [0, cuts[0], cuts[0] + cuts[1]]
        self.weights = [weights[i : i + n] for i, n in zip(starts, cuts, strict=True)]

    @cached_property
    def _mean_of_r(self) -> Tensor:
        return (wide(self.r).sum(0) / self.setting.source.count).to(self.r.dtype)

    # Shifts are about the means of the depthwise outputs, borders left out of account.

    @cached_property
    def first_shift(self) -> Tensor | None:
        """Of z_1: (Q_1, C)."""
        if not (self.setting.is_training and self.group.firsts):
            return None
        return _tap_sums(self.weights[0]).mul_(self._mean_of_r)

    @cached_property
    def last_shift(self) -> Tensor | None:
        """Of z_2: (Q_2, C)."""
        if not self.setting.is_training:
            return None
        shift, chained = _tap_sums([*self.weights[1], *self.weights[2]]), len(self.group.firsts)
        shift[:chained].mul_(_MEAN_OF_U)
        shift[chained:].mul_(self._mean_of_r)
        return shift

    def cast(self, x: Tensor) -> Tensor:
        return x.to(self.r.dtype)

    def first_layers(self) -> Tensor:
        """z_1: (Q_1, M', C)."""
        z = self.r.new_empty(len(self.group.firsts), self.setting.target.rows, self.r.shape[1])
        self._apply(0, [self.r] * len(z), self.first_shift, z)
        return self._masked(z)

    def last_layers(self, u: Tensor | None) -> list[Tensor]:
        """z_2, an edge's side by side: (M', n · C)."""
        rows, width = self.setting.target.rows, self.r.shape[1]
        z = [self.r.new_empty(rows, n * width) for _, n in self.group.edges]
        members = self.group.members(z)
        self._apply(2, [self.r] * len(members), self.last_shift, members)
        if u is not None:
            self._apply(1, u, self.last_shift, members)
        return [self._masked(each) for each in z]

    def _apply(self, which: int, x: Rows, shift: Tensor | None, out: Rows) -> None:
        for backend, here, edges in self._convolutions(which, x):
            some = None if shift is None else shift[here.start : here.stop]
            backend.forward(edges, some, [out[q] for q in here])

    def back(self, which: int, gradient: Rows, x: Rows, to_x: Rows) -> list[Tensor | None]:
        """Gradients of the kinds' taps; those of x are added to `to_x`."""
        return [
            backend.backward(
                edges, [gradient[q] for q in here], [to_x[q] for q in here], self.wants_weights
            )
            for backend, here, edges in self._convolutions(which, x)
        ]

    def _convolutions(
        self, which: int, x: Rows
    ) -> Iterator[tuple[ModuleType, range, Convolutions]]:
        """Of each kind: the backend that serves it, its members, and they themselves."""
        backend, target = self.setting.backend, self.setting.target
        source = target if which == 1 else self.setting.source
        for kind, weight in zip(self.group.kinds[which], self.weights[which], strict=True):
            edges = Convolutions(kind.form, [x[q] for q in kind.members], weight, source, target)
            yield serving(backend, kind.form), kind.members, edges

    def moments(self, z: Tensor | Sequence[Tensor]) -> Moments | None:
        """Of z_1 (Q, M, C), or of z_2 by edges, over visible rows; None: not of this batch."""
        if not self.setting.is_training:
            return None
        if isinstance(z, Tensor):
            total, gram = wide(z).sum(1), wide(z).mT @ wide(z)
        else:
            stacks = self.group.stacks([wide(each) for each in z])
            total = self.group.gathered([each.sum(1) for each in stacks])
            gram = self.group.gathered([each.mT @ each for each in stacks])
        count = self.setting.target.count
        return Moments(total / count, gram / count)

    def fold(
        self,
        moments: Moments | None,
        layers: Sequence[DepthwiseSeparable],
        points: Tensor,
        mixing: Tensor | None,
        shift: Tensor | None,
    ) -> Fold:
        """Of the layers."""
        norms = Norms([layer.norm for layer in layers], self.setting.target.count)
        return Fold(norms, moments, points, mixing, shift)

    def through_nodes(
        self,
        fold: Fold,
        z2: Sequence[Tensor],
        to_nodes: Sequence[Tensor],
        to_lacking: Tensor,
        wants_weight: bool,
        wants_mixing: bool,
    ) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        """Through node_t += W'_2 z_2 + b_2: gradients of z_2, W_2 and a."""
        group = self.group
        # In float32 or wider: at losses scaled for it, half precision would overflow.
        to_nodes, z2 = [wide(to_node) for to_node in to_nodes], [wide(z) for z in z2]
        to_blocks = [to_node.T @ z for to_node, z in zip(to_nodes, z2, strict=True)]
        to_product = group.gathered(group.stacks(to_blocks))
        to_bias = to_lacking[index(group.slots, to_lacking.device)]
        by_moments, to_weight, to_mixing = fold.backward(
            to_product, to_bias, wants_weight, wants_mixing
        )
        products = group.by_edge(fold.product)
        to_z2 = [
            to_node @ product.transpose(0, 1).flatten(1)
            for to_node, product in zip(to_nodes, products, strict=True)
        ]
        if by_moments is not None:
            parts = (group.stacks(to_z2), group.stacks(z2), *map(group.by_edge, by_moments))
            for to_z, z, constant, slope in zip(*parts, strict=True):
                Affine(constant, slope).add_to(to_z, z)
        return [self._masked(self.cast(to_z)) for to_z in to_z2], to_weight, to_mixing

    def through_relu(
        self, fold: Fold, z1: Tensor, u: Tensor, to_u: Tensor, wants_weight: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Through u = ReLU(W'_1 z_1 + b_1): gradients of z_1 and W_1."""
        to_u, z1 = wide(torch.ops.aten.threshold_backward(to_u, u, 0)), wide(z1)
        to_product, to_bias = torch.bmm(to_u.mT, z1), to_u.sum(1)
        by_moments, to_weight, _ = fold.backward(to_product, to_bias, wants_weight, False)
        to_z1 = to_u @ fold.product
        if by_moments is not None:
            by_moments.add_to(to_z1, z1)
        return self._masked(self.cast(to_z1)), to_weight

    def _masked(self, x: Tensor) -> Tensor:
        return self.setting.target.masked(x)


def _tap_sums(weights: Sequence[Tensor]) -> Tensor:
    """Of several kinds (E, k, k, C): (Q, C)."""
    return torch.cat([weight.flatten(1, 2).sum(1) for weight in weights])
