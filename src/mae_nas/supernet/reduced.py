"""Skips of stride 2 that leave one node, FactorizedReduce, computed once for all their edges.

Every edge reads the same two pixels of each 2 × 2 cell, z_0 and z_1 (M', C), and makes half of its
channels from either. With the edges' pointwise weights one below the other, each pixel is the input
of one folded product, see `fold`:

    node_t += [W'_0t z_0 + b_0t | W'_1t z_1 + b_1t]

Their mean needs no shift: it is small beside their spread, as a normalised node's after its ReLU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mae_nas.spaces.primitives import FactorizedReduce
from mae_nas.supernet.fold import Fold, Moments, Norms
from mae_nas.supernet.separable import Setting, Sums
from mae_nas.supernet.sites import Sites, in_full_precision, index, matrix, wide


@dataclass(frozen=True, eq=False)
class Reduction:
    """The skips of one node.

    Args:
        slots: the E edges, counted among those that leave the node.
        choices: their mixing weights, counted among those of the cell.
        layers: themselves.
    """

    slots: tuple[int, ...]
    choices: tuple[int, ...]
    layers: tuple[FactorizedReduce, ...]


class _HalvedNorms(Norms):
    """The edges' norms of channels from z_0, then those of channels from z_1."""

    def _all(self, name: str) -> list[Tensor]:
        every = super()._all(name)
        if name == "num_batches_tracked":
            return every
        return [
            half for halves in zip(*(x.chunk(2) for x in every), strict=True) for half in halves
        ]


def corners(x: Sequence[Tensor], source: Sites, target: Sites) -> tuple[list[Tensor], list[Tensor]]:
    """Of matrices (M, C_i) the rows of even pixels, and of odd ones: (M', C_i) each."""
    maps = [source.as_map(each) for each in x]
    even = [target.as_rows(each[:, :, ::2, ::2]) for each in maps]
    return even, [target.as_rows(each[:, :, 1::2, 1::2]) for each in maps]


def add_reduced(
    reduction: Reduction, setting: Setting, r: Tensor, mixing: Tensor, sums: Sums
) -> None:
    """Add the skips' outputs to the nodes that they lead to; arguments as `add_separable`'s."""
    (even,), (odd,) = corners([r], setting.source, setting.target)
    evens = [matrix(layer.even.weight) for layer in reduction.layers]
    odds = [matrix(layer.odd.weight) for layer in reduction.layers]
    points = torch.stack([torch.cat(evens), torch.cat(odds)]).to(mixing.dtype)
    chosen = mixing[index(reduction.choices, r.device)]
    # (2, E · C/2): the weight of each channel.
    chosen = chosen.repeat_interleave(points.shape[1] // len(chosen)).expand(2, -1)
    both = torch.stack([even, odd])
    sums.add(reduction.slots, partial(_Reduced.apply, reduction, setting, both, chosen, points))


class _Reduced(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's
        reduction: Reduction,
        setting: Setting,
        z: Tensor,
        mixing: Tensor,
        points: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        *nodes, lacking = rest
        count, moments = setting.target.count, None
        if setting.is_training:
            moments = Moments(wide(z).sum(1) / count, wide(z).mT @ wide(z) / count)
        norms = _HalvedNorms([layer.norm for layer in reduction.layers], count)
        fold = Fold(norms, moments, points, mixing)
        products = fold.product.to(z.dtype).chunk(len(nodes), 1)
        for node, product in zip(nodes, products, strict=True):
            for half, pixel, each in zip(node.chunk(2, 1), z, product, strict=True):
                half.addmm_(pixel, each.T)
        bias = fold.bias.view(2, len(nodes), -1).transpose(0, 1).flatten(1)
        lacking.index_add_(0, index(reduction.slots, z.device), bias)
        ctx.mark_dirty(*nodes, lacking)
        ctx.save_for_backward(z)
        ctx.reduction, ctx.setting, ctx.fold = reduction, setting, fold
        return (*nodes, lacking)

    @staticmethod
    @in_full_precision
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - torch's
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        *to_nodes, to_lacking = gradients
        (z,) = ctx.saved_tensors
        setting, fold = ctx.setting, ctx.fold
        _, _, _, wants_mixing, wants_points, *_ = ctx.needs_input_grad
        # (2, M', E · C/2) and (2, E · C/2)
        to_halves = torch.stack([torch.cat(half, 1) for half in _halves(to_nodes)])
        to_bias = to_lacking[index(ctx.reduction.slots, z.device)]
        to_bias = torch.stack([half.flatten() for half in to_bias.chunk(2, 1)])
        to_halves, wide_z = wide(to_halves), wide(z)
        by_moments, to_points, to_mixing = fold.backward(
            to_halves.mT @ wide_z, to_bias, wants_points, wants_mixing
        )
        to_z = to_halves @ fold.product
        if by_moments is not None:
            by_moments.add_to(to_z, wide_z)
        to_z = setting.target.masked(to_z.to(z.dtype))
        return (None, None, to_z, to_mixing, to_points, *to_nodes, to_lacking)


def _halves(x: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], ...]:
    """Of every tensor the first half of its channels, and the second halves."""
    return tuple(zip(*(each.chunk(2, -1) for each in x), strict=True))
