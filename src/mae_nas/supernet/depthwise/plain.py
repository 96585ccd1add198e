"""Depthwise convolutions and pools by torch's own: works everywhere."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mae_nas.supernet.depthwise.interface import Convolutions, Form, Pools
from mae_nas.supernet.sites import Sites, wide

NAME = "torch"


def forward(edges: Convolutions, shift: Tensor | None, out: Sequence[Tensor]) -> None:
    """See the interface."""
    form, x, weight, source, target = edges
    maps: list[Tensor] = []
    for e, to in enumerate(out):
        if e == 0 or x[e] is not x[e - 1]:
            maps = [source.as_map(x[e])]
        bias = None if shift is None else -shift[e]
        y = _convolve(maps[0], _taps(weight[e]), form, bias)
        to.copy_(target.as_rows(y))


def backward(
    edges: Convolutions, gradient: Sequence[Tensor], to_x: Sequence[Tensor], wants_weight: bool
) -> Tensor | None:
    """See the interface."""
    form, x, weight, source, target = edges
    to_weight = torch.empty_like(weight) if wants_weight else None
    seen = None
    for e, g in enumerate(gradient):
        sent = target.as_map(g)
        to_x[e].add_(source.as_rows(_input_gradient(sent, _taps(weight[e]), form, source)))
        if to_weight is not None:
            if seen is None or x[e] is not x[e - 1]:
                seen = source.as_map(x[e])
            to_weight[e] = _tap_gradient(seen, sent, form)[:, 0].permute(1, 2, 0)
    return to_weight


def pool(pools: Pools) -> list[Tensor]:
    """See the interface."""
    kinds, stride, x, source, target = pools
    maps = source.as_map(x)
    pooled = [kind(maps, source.visible, target.visible, stride) for kind in kinds]
    return [target.as_rows(y) for y in pooled]


def pool_backward(pools: Pools, gradient: Sequence[Tensor]) -> Tensor:
    """See the interface."""
    with torch.enable_grad():
        leaf = pools.x.detach().requires_grad_()
        return torch.autograd.grad(pool(pools._replace(x=leaf)), leaf, gradient)[0]


def combine(
    out: Sequence[Tensor],
    inputs: Sequence[Sequence[Tensor]],
    scale: Tensor,
    bias: Tensor | None,
    adds: bool,
) -> None:
    """See the interface."""
    for o, to in enumerate(out):
        if not adds:
            to.zero_() if bias is None else to.copy_(bias[o])
        for x, factor in zip(inputs[o], scale[o], strict=True):
            to.addcmul_(x, factor)


def dots(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """See the interface."""
    return torch.stack(
        [torch.stack([torch.linalg.vecdot(wide(a), wide(b), dim=0) for b in y]) for a in x]
    )


def _taps(weight: Tensor) -> Tensor:
    """(k, k, C) as torch has it: (C, 1, k, k)."""
    return weight.permute(2, 0, 1)[:, None]


def _convolve(x: Tensor, taps: Tensor, form: Form, bias: Tensor | None = None) -> Tensor:
    padding = form.dilation * (form.kernel // 2)
    return functional.conv2d(x, taps, bias, form.stride, padding, form.dilation, x.shape[1])


def _input_gradient(g: Tensor, taps: Tensor, form: Form, source: Sites) -> Tensor:
    if form.stride == 1:  # a forward convolution, several times faster than torch's backward one
        return _convolve(g, taps.flip(2, 3), form)
    like = g.new_empty(1).expand(len(g), g.shape[1], source.height, source.width)
    return _backward(g, like, taps, form, to_x=True)


def _tap_gradient(x: Tensor, g: Tensor, form: Form) -> Tensor:
    """Gradient of the taps: (C, 1, k, k).

    oneDNN is up to thirty times slower unless the kernel is 3 × 3 and not dilated. So a dilation of
    2 becomes none: the taps of an output meet only inputs of its own parity in row and column, and
    the four parities are maps of their own. And 5 × 5 taps are four overlapping corners of 3 × 3.
    """
    empty = x.new_empty(1).expand(x.shape[1], 1, form.kernel, form.kernel)
    if x.device.type != "cpu":
        return _backward(g, x, empty, form, to_x=False)
    if form.dilation == 2 and form.stride == 2:  # even rows and columns alone are met
        x, form = x[:, :, ::2, ::2], form._replace(dilation=1, stride=1)
    if form.dilation == 2 and form.stride == 1 and x.shape[2] % 2 == x.shape[3] % 2 == 0:
        x, g, form = _by_parity(x), _by_parity(g), form._replace(dilation=1)
    if form != form._replace(kernel=5, dilation=1, stride=1):
        return _backward(g, x, empty, form, to_x=False)
    out = x.new_empty(x.shape[1], 1, 5, 5)
    small, three = form._replace(kernel=3), x.new_empty(1).expand(x.shape[1], 1, 3, 3)
    framed = functional.pad(x, (2, 2, 2, 2))
    height, width = x.shape[2] + 2, x.shape[3] + 2
    for top in (0, 2):
        for left in (0, 2):
            corner = framed[:, :, top : top + height, left : left + width]
            corner = corner.contiguous(memory_format=torch.channels_last)
            found = _backward(g, corner, three, small, to_x=False, padding=0)
            out[:, :, top : top + 3, left : left + 3] = found
    return out


def _by_parity(x: Tensor) -> Tensor:
    """(B, C, H, W) to (4·B, C, H/2, W/2), channels last."""
    batch, channels, height, width = x.shape
    cut = x.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2, channels)
    cut = cut.permute(2, 4, 0, 1, 3, 5).reshape(4 * batch, height // 2, width // 2, channels)
    return cut.permute(0, 3, 1, 2)


def _backward(
    g: Tensor, x: Tensor, taps: Tensor, form: Form, to_x: bool, padding: int | None = None
) -> Tensor:
    padding = form.dilation * (form.kernel // 2) if padding is None else padding
    to_input, to_taps, _ = torch.ops.aten.convolution_backward(
        g,
        x,
        taps,
        None,
        [form.stride] * 2,
        [padding] * 2,
        [form.dilation] * 2,
        False,
        [0, 0],
        x.shape[1],
        [to_x, not to_x, False],
    )
    return to_input if to_x else to_taps
