"""Pools and plain skips that leave one node, computed once for all its edges.

A pool has no weights: its output P and its statistics serve every edge. Each adds

    node_t += s_t ⊙ P + b_t,    s_t = a_t / √(σ²_P + ε),    b_t = −s_t ⊙ μ_P,

and a skip adds a_t · h. In training P is lessened by the mean of h, which its norm takes away again
and without which float32 loses the digits of σ². Pools are computed again for the backward pass:
they are cheap, and what they give is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mae_nas.supernet.depthwise import PoolFunction, Pools, combining, pooling
from mae_nas.supernet.fold import Affine, Moments, Norms, PoolFold
from mae_nas.supernet.separable import Setting, Sums
from mae_nas.supernet.sites import in_full_precision, index, wide


@dataclass(frozen=True)
class Shared:
    """Operations that the same edges of a node have in common.

    Args:
        slots: the E edges, counted among those that leave the node.
        choices: E mixing weights for each of the Q pools, then those of the skip, if there is one;
            counted among those of the cell.
        pools: Q kinds.
        stride: of the pools.
        norms: of the pools, Q · E.
    """

    slots: tuple[int, ...]
    choices: tuple[int, ...]
    pools: tuple[PoolFunction, ...]
    stride: int
    norms: tuple[nn.BatchNorm2d, ...]


def add_shared(shared: Shared, setting: Setting, h: Tensor, mixing: Tensor, sums: Sums) -> None:
    """Add the operations' outputs to the nodes that they lead to; arguments as `add_separable`'s.

    The node itself, `h`, is read: before its ReLU.
    """
    chosen = mixing[index(shared.choices, mixing.device)].view(-1, len(shared.slots))
    sums.add(shared.slots, partial(_Shared.apply, shared, setting, chosen, h))


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's
        shared: Shared,
        setting: Setting,
        mixing: Tensor,
        h: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        *nodes, lacking = rest
        pools, mixer = len(shared.pools), combining(setting.backend)
        shift = None
        if pools and setting.is_training:
            shift = (wide(h).sum(0) / setting.source.count).to(h.dtype)
        inputs = _mixed(shared, setting, h, shift)
        scales = mixing[pools:, :, None].expand(-1, -1, lacking.shape[1])
        ctx.fold = None
        if pools:
            count, moments = setting.target.count, None
            if setting.is_training:
                total = torch.stack([wide(x).sum(0) for x in inputs[:pools]])
                squares = torch.cat([mixer.dots([x], [x])[0] for x in inputs[:pools]])
                moments = Moments(total / count, squares / count)
            ctx.fold = PoolFold(Norms(shared.norms, count), moments, mixing[:pools], shift)
            scales = torch.cat([ctx.fold.product, scales])
            lacking.index_add_(0, index(shared.slots, lacking.device), ctx.fold.bias.sum(0))
        scales = scales.to(h.dtype)
        mixer.combine(nodes, [inputs] * len(nodes), scales.transpose(0, 1), None, adds=True)
        ctx.mark_dirty(*nodes, lacking)
        ctx.save_for_backward(scales, h, shift)
        ctx.shared, ctx.setting = shared, setting
        return (*nodes, lacking)

    @staticmethod
    @in_full_precision
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - torch's
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        *to_nodes, to_lacking = gradients
        scales, h, shift = ctx.saved_tensors
        shared, setting = ctx.shared, ctx.setting
        inputs, pools = _mixed(shared, setting, h, shift), len(shared.pools)
        mixer = combining(setting.backend)
        to_scales = mixer.dots(inputs, to_nodes)
        to_mixing, to_h = to_scales[pools:].sum(2), None
        if pools:
            to_bias = to_lacking[index(shared.slots, to_lacking.device)].expand(pools, -1, -1)
            wants_mixing = ctx.needs_input_grad[2]
            by_moments, to_pools = ctx.fold.backward(to_scales[:pools], to_bias, wants_mixing)
            to_mixing = torch.cat([to_pools, to_mixing]) if wants_mixing else None
            sent = list(to_nodes), scales[:pools], by_moments
            to_h = _through_pools(shared, setting, h, inputs[:pools], *sent)
        if len(inputs) > pools:  # skipped
            to_h = torch.zeros_like(h) if to_h is None else to_h
            mixer.combine([to_h], [to_nodes], scales[pools:], None, adds=True)
        return (None, None, to_mixing, to_h, *to_nodes, to_lacking)


def _through_pools(
    shared: Shared,
    setting: Setting,
    h: Tensor,
    pooled: Sequence[Tensor],
    to_nodes: Sequence[Tensor],
    scales: Tensor,
    by_moments: Affine | None,
) -> Tensor:
    """Gradient of the node by way of what pools add to others, and of their moments."""
    inputs, offset = [to_nodes] * len(pooled), None
    if by_moments is not None:
        offset, slope = (each.to(scales.dtype) for each in by_moments)
        scales = torch.cat([scales, slope[:, None]], 1)
        inputs = [[*to_nodes, x] for x in pooled]
    to_pooled = [torch.empty_like(x) for x in pooled]
    combining(setting.backend).combine(to_pooled, inputs, scales, offset, adds=False)
    pools = _pools(shared, setting, h)
    return pooling(setting.backend, pools).pool_backward(pools, to_pooled)


def _pools(shared: Shared, setting: Setting, h: Tensor) -> Pools:
    return Pools(shared.pools, shared.stride, h, setting.source, setting.target)


def _mixed(shared: Shared, setting: Setting, h: Tensor, shift: Tensor | None) -> list[Tensor]:
    """What the pools give before their norms, less a shift, and what is skipped: (M', C) each."""
    pools = _pools(shared, setting, h)
    pooled = pooling(setting.backend, pools).pool(pools) if shared.pools else []
    if shift is not None:
        pooled = [setting.target.masked(x.sub_(shift)) for x in pooled]
    is_skipped = len(shared.choices) > len(shared.norms)
    return [*pooled, h] if is_skipped else pooled
