"""Pools and plain skips that leave one node, computed once for all its edges.

A pool has no weights: its output P and its statistics serve every edge. Each adds

    node_t += s_t ⊙ P + b_t,    s_t = a_t / √(σ²_P + ε),    b_t = −s_t ⊙ μ_P,

and a skip adds a_t · h.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mae_nas.supernet.fold import Fold, Moments, Norms
from mae_nas.supernet.separable import Setting
from mae_nas.supernet.sites import in_full_precision, index, wide


@dataclass(frozen=True)
class Shared:
    """Operations that the same edges of a node have in common.

    Args:
        slots: the E edges, counted among those that leave the node.
        choices: E mixing weights for each of the Q pools, then those of the skip, if there is one;
            counted among those of the cell.
        norms: of the pools, Q · E.
    """

    slots: tuple[int, ...]
    choices: tuple[int, ...]
    norms: tuple[nn.BatchNorm2d, ...]


def add_shared(
    shared: Shared,
    setting: Setting,
    inputs: Sequence[Tensor],
    mixing: Tensor,
    nodes: Sequence[Tensor],
    lacking: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """Add the operations' outputs to the nodes that they lead to.

    Args:
        shared: the operations.
        setting: of the computation.
        inputs: what the pools give before their norms, then what is skipped: (M', C) each, 0 at
            hidden rows.
        mixing: weights of all candidates of the cell, flat.
        nodes: per edge of the node the sum so far, (M', C); changed in place.
        lacking: what each of their rows still lacks, (edges, C); changed in place.

    Returns:
        The nodes, and `lacking`.
    """
    nodes = list(nodes)
    chosen = mixing[index(shared.choices, mixing.device)].view(len(inputs), -1)
    here = [nodes[slot] for slot in shared.slots]
    *here, lacking = _Shared.apply(shared, setting, chosen, lacking, *inputs, *here)
    for slot, node in zip(shared.slots, here, strict=True):
        nodes[slot] = node
    return nodes, lacking


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's
        shared: Shared,
        setting: Setting,
        mixing: Tensor,
        lacking: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs, nodes = rest[: len(mixing)], rest[len(mixing) :]
        pools = len(shared.norms) // len(nodes)
        scales = mixing[pools:, :, None].expand(-1, -1, lacking.shape[1])
        ctx.fold = None
        if pools:
            count, moments = setting.target.count, None
            if setting.is_training:
                total = torch.stack([wide(x).sum(0) for x in inputs[:pools]])
                squares = torch.stack([_dot(x, x) for x in inputs[:pools]])
                moments = Moments(total / count, squares / count)
            ctx.fold = Fold(Norms(shared.norms, count), moments, None, mixing[:pools])
            scales = torch.cat([ctx.fold.product, scales])
            lacking.index_add_(0, index(shared.slots, lacking.device), ctx.fold.bias.sum(0))
        scales = scales.to(inputs[0].dtype)
        for x, row in zip(inputs, scales, strict=True):
            for node, scale in zip(nodes, row, strict=True):
                node.addcmul_(x, scale)
        ctx.mark_dirty(lacking, *nodes)
        ctx.save_for_backward(scales, *inputs)
        ctx.slots, ctx.count, ctx.pools = shared.slots, setting.target.count, pools
        return (*nodes, lacking)

    @staticmethod
    @in_full_precision
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - torch's
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        *to_nodes, to_lacking = gradients
        scales, *inputs = ctx.saved_tensors
        pools = ctx.pools
        to_inputs = []
        for row in scales:
            to_x = to_nodes[0] * row[0]
            for to_node, scale in zip(to_nodes[1:], row[1:], strict=True):
                to_x.addcmul_(to_node, scale)
            to_inputs.append(to_x)
        to_scales = torch.stack([torch.stack([_dot(g, x) for g in to_nodes]) for x in inputs])
        to_mixing = to_scales[pools:].sum(2)
        if pools:
            to_bias = to_lacking[index(ctx.slots, to_lacking.device)].expand(pools, -1, -1)
            wants_mixing = ctx.needs_input_grad[2]
            found = ctx.fold.backward(to_scales[:pools], to_bias, False, wants_mixing)
            to_moments, _, to_pools = found
            to_mixing = torch.cat([to_pools, to_mixing]) if wants_mixing else None
            if to_moments is not None:
                to_mean, to_second = (to.to(scales.dtype) / ctx.count for to in to_moments)
                for q in range(pools):
                    to_inputs[q].addcmul_(inputs[q], to_second[q], value=2).add_(to_mean[q])
        return (None, None, to_mixing, to_lacking, *to_inputs, *to_nodes)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Σ over rows of x ⊙ y: (C)."""
    return torch.linalg.vecdot(wide(x), wide(y), dim=0)
