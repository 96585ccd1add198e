"""The candidate operations of the DARTS space (DARTS, Sec. 3.1), as the supernet runs them.

BatchNorm has no affine part here and follows the pools too, so that every operation but the plain
skip has the same scale and α alone weighs it. Under sparse masking each operation receives the
visible sites at its input and output resolution; it relies on its input being 0 at hidden sites and
returns an output that is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mae_nas.backbone import CellSpec
from mae_nas.masking import BatchNorm, visible_average_pool, visible_max_pool


class Primitive(nn.Module, ABC):
    """One candidate operation of an edge.

    Shapes:
        x: (B, C, H, W); before: (B, 1, H, W); after: (B, 1, H/stride, W/stride), bool, both None
        without sparse masking  ->  (B, C, H/stride, W/stride).
    """

    is_zero = False
    """Always outputs 0: takes part in the softmax, is never computed, never derived."""
    is_skip = False
    """Passes its input on without a spatial operation: counted by the collapse verdict."""
    is_random = False
    """Draws from torch's global generator, which the training step seeds per batch."""

    @abstractmethod
    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        """Apply the operation."""


class Zero(Primitive):
    """`none`: no connection."""

    is_zero = True

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:  # noqa: ARG002
        raise AssertionError("the zero operation contributes nothing and is never run")


class ReLUConvBN(Primitive):
    """ReLU, pointwise convolution, BatchNorm: brings a cell's input to the cell's width."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.norm = BatchNorm(channels_out, affine=False)

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:  # noqa: ARG002
        return self.norm(self.conv(x.relu()), after)


class FactorizedReduce(Primitive):
    """Stride 2 without losing sites: pointwise convolutions of the even grid and of the odd.

    Each sees one pixel of every 2 × 2 cell; together they halve H and W, which must be even.
    """

    is_skip = True

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(channels_in, channels_out // 2, 1, bias=False)
        self.odd = nn.Conv2d(channels_in, channels_out // 2, 1, bias=False)
        self.norm = BatchNorm(channels_out, affine=False)

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:  # noqa: ARG002
        x = x.relu()
        # Slices, not strides: oneDNN's strided pointwise convolution corrupts memory in backward
        # below eight channels (channels-last float32, seen with torch 2.14 on a CPU).
        even, odd = self.even(x[:, :, ::2, ::2]), self.odd(x[:, :, 1::2, 1::2])
        return self.norm(torch.cat([even, odd], dim=1), after)


def preprocessors(spec: CellSpec) -> tuple[Primitive, Primitive]:
    """What brings a cell's two inputs to its width, and the first to the second's resolution."""
    before_last, last = spec.inputs
    first = ReLUConvBN if before_last.stride == last.stride else FactorizedReduce
    return first(before_last.channels, spec.width), ReLUConvBN(last.channels, spec.width)


class Skip(Primitive):
    """Identity."""

    is_skip = True

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:  # noqa: ARG002
        return x


def skip(channels: int, stride: int) -> Primitive:
    """`skip_connect`: identity, or FactorizedReduce at stride 2."""
    return Skip() if stride == 1 else FactorizedReduce(channels, channels)


class Pool(Primitive):
    """3 × 3 pooling, then BatchNorm."""

    def __init__(
        self,
        pool: Callable[[Tensor, Tensor | None, Tensor | None, int], Tensor],
        channels: int,
        stride: int,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.stride = stride
        self.norm = BatchNorm(channels, affine=False)

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        return self.norm(self.pool(x, before, after, self.stride), after)


class DepthwiseSeparable(Primitive):
    """ReLU, depthwise convolution, pointwise convolution, BatchNorm.

    With `dilation=2` this is the space's `dil_conv`; `sep_conv` is two of them.
    """

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels,
            channels,
            kernel,
            stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=channels,
            bias=False,
        )
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = BatchNorm(channels, affine=False)

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:  # noqa: ARG002
        # No mask between the two: a pointwise convolution cannot mix sites.
        return self.norm(self.pointwise(self.depthwise(x.relu())), after)


class SepConv(Primitive):
    """Two depthwise separable convolutions; the first carries the stride."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.first = DepthwiseSeparable(channels, kernel, stride)
        self.second = DepthwiseSeparable(channels, kernel, 1)

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        return self.second(self.first(x, before, after), after, after)


class ConvPair(Primitive):
    """ReLU, convolutions 1×7 and 7×1, BatchNorm: an operation of AmoebaNet-A's cells."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.row = nn.Conv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False)
        self.column = nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False)
        self.norm = BatchNorm(channels, affine=False)

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        x = self.row(x.relu())
        if before is not None:  # between the two, at the resolution that the first leaves
            seen = before.unflatten(3, (-1, self.stride)).any(4)
            x = x.where(seen, 0.0)
        return self.norm(self.column(x), after)


class Noise(Primitive):
    """Standard normal noise in place of the input: S4's bait for a search (RobustDARTS, Sec. 3)."""

    is_random = True

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:  # noqa: ARG002
        noise = torch.randn_like(x[:, :, :: self.stride, :: self.stride])
        return noise if after is None else noise.where(after, 0.0)


PRIMITIVES: Mapping[str, Callable[[int, int], Primitive]] = {
    "none": lambda _channels, _stride: Zero(),
    "max_pool_3x3": lambda channels, stride: Pool(visible_max_pool, channels, stride),
    "avg_pool_3x3": lambda channels, stride: Pool(visible_average_pool, channels, stride),
    "skip_connect": skip,
    "sep_conv_3x3": lambda channels, stride: SepConv(channels, 3, stride),
    "sep_conv_5x5": lambda channels, stride: SepConv(channels, 5, stride),
    "dil_conv_3x3": lambda channels, stride: DepthwiseSeparable(channels, 3, stride, dilation=2),
    "dil_conv_5x5": lambda channels, stride: DepthwiseSeparable(channels, 5, stride, dilation=2),
    "sep_conv_7x7": lambda channels, stride: SepConv(channels, 7, stride),
    "conv_7x1_1x7": ConvPair,
    "noise": lambda _channels, stride: Noise(stride),
}
"""Name -> maker(channels, stride). `sep_conv_7x7` and `conv_7x1_1x7` are of NASNet-A's and
AmoebaNet-A's cells alone; `noise` is S4's."""
