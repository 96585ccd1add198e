"""The hierarchical decoder, Eq. (3) of MAE-NAS; SimMIM's head is a preset of it."""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Literal

from torch import Tensor, nn

from mae_nas.backbone import FeatureInfo
from mae_nas.decoders.base import Decoder, initialise, kernel_problems


class HierarchicalDecoder(Decoder):
    """Sum of one light head per resolution, Eq. (3) of MAE-NAS.

        I_rec = Linear(Conv(F_1)) + Upsample(Conv(F_2), 2) + Upsample(Conv(F_3), 4)

    Each head paints pixels. With `nearest` it does so on F_1's grid, q × q pixels a cell (q: stride
    of F_1), so the same formula serves CIFAR (q = 1) and strided stems. With `shuffle` each paints
    s_i × s_i pixels a cell: taps=(3,), kernel=1 is then SimMIM's head, the paper's "w/o HD".

    Args:
        features: channels and stride of F_1 … F_n, finest first.
        channels: of the image.
        taps: which features are used, counted from 1 as in the paper.
        kernel: of the convolutions, odd. Not stated in the paper; `auto` is 3 where q ≤ 2 (a
            pointwise head is dead under sparse masking), else 1 ("equivalent to one conv layer").
        upsample: `nearest` or `shuffle`. Not stated in the paper; nearest commutes with pointwise
            convolutions and is deterministic on CUDA.

    Shapes:
        features[i]: (B, C_i, H/s_i, W/s_i)  ->  image: (B, channels, H, W).
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        channels: int,
        taps: Sequence[int] = (1, 2, 3),
        kernel: int | Literal["auto"] = "auto",
        upsample: Literal["nearest", "shuffle"] = "nearest",
    ) -> None:
        q = features[0].stride
        if kernel == "auto":
            kernel = 3 if q <= 2 else 1
        problems = list(kernel_problems(kernel))
        if upsample not in ("nearest", "shuffle"):
            problems.append(f"upsample {upsample!r}: must be nearest or shuffle")
        super().__init__(features, taps, problems)
        self.kernel = kernel

        def head(feature: FeatureInfo) -> nn.Module:
            side = feature.stride if upsample == "shuffle" else q
            paint = nn.Conv2d(feature.channels, channels * side**2, kernel, padding=kernel // 2)
            layers: list[nn.Module] = [paint]
            if feature.stride == 1:  # "Linear": elsewhere absorbed by the convolution
                layers.append(nn.Conv2d(channels, channels, 1))
            if feature.stride > side:
                layers.append(nn.Upsample(scale_factor=feature.stride // side))
            if side > 1:
                layers.append(nn.PixelShuffle(side))
            return nn.Sequential(*layers)

        self.heads = nn.ModuleList(head(features[tap - 1]) for tap in self.taps)
        initialise(self)

    @property
    def is_pointwise(self) -> bool:
        return self.kernel == 1

    def branches(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        return [head(features[tap - 1]) for head, tap in zip(self.heads, self.taps, strict=True)]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return reduce(add, self.branches(features))
