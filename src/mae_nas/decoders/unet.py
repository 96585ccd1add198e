"""A U-shaped decoder after SparK, Sec. 3.3: heavier, as an upper reference for the light one."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from mae_nas.backbone import FeatureInfo
from mae_nas.decoders.base import Decoder, initialise, kernel_problems
from mae_nas.masking import BatchNorm


class _Up(nn.Sequential):
    """Twice the resolution, half the channels (SparK's decoder block)."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(channels, channels, 4, 2, padding=1),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            BatchNorm(channels),
            nn.ReLU6(),
            nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False),
            BatchNorm(channels // 2),
        )


class UNetDecoder(Decoder):
    """Upsampling blocks from the coarsest tap to F_1's grid, finer taps added on the way.

    F_1's grid is painted q × q pixels a cell (q = stride of F_1) by a pointwise convolution.

    Args:
        features: channels and stride of F_1 … F_n, finest first.
        channels: of the image.
        taps: which features are used, counted from 1; the coarsest starts the decoder.
        width: channels at the coarsest tap, halved by each block. 64 keeps the decoder at a fifth
            of the supernet's cost; SparK's 768 would outweigh it.
        kernel: of the convolutions that bring the finer taps in, odd.

    Shapes:
        features[i]: (B, C_i, H/s_i, W/s_i)  ->  image: (B, channels, H, W).
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        channels: int,
        taps: Sequence[int] = (1, 2, 3),
        width: int = 64,
        kernel: int = 3,
    ) -> None:
        super().__init__(features, taps, list(kernel_problems(kernel)))
        q, coarsest = features[0].stride, features[self.taps[-1] - 1]
        blocks = int(math.log2(coarsest.stride // q))
        if width < 1 or width % 2**blocks:
            raise ValueError(f"width {width}: must be a multiple of {2**blocks}, e.g. 64")
        self.enter = nn.Conv2d(coarsest.channels, width, 1)
        self.blocks = nn.ModuleList(_Up(width >> i) for i in range(blocks))
        self.laterals = nn.ModuleDict(
            {
                str(tap): nn.Conv2d(
                    features[tap - 1].channels,
                    width >> (self.taps[-1] - tap),
                    kernel,
                    padding=kernel // 2,
                )
                for tap in self.taps[:-1]
            }
        )
        self.paint = nn.Conv2d(width >> blocks, channels * q * q, 1)
        self.shuffle = nn.PixelShuffle(q)
        initialise(self)

    @property
    def is_pointwise(self) -> bool:
        return not self.blocks

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = self.enter(features[self.taps[-1] - 1])
        for block, tap in zip(self.blocks, range(self.taps[-1] - 1, 0, -1), strict=True):
            x = block(x)
            if tap in self.taps:
                x = x + self.laterals[str(tap)](features[tap - 1])
        return self.shuffle(self.paint(x))
