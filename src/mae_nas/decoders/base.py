"""What a decoder is: the feature maps it uses, and the image it makes of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from mae_nas.backbone import FeatureInfo
from mae_nas.checks import raise_all


class Decoder(nn.Module, ABC):
    """Feature maps to an image.

    Args:
        features: channels and stride of F_1 … F_n, finest first.
        taps: which of them are used, counted from 1 as in the paper; the encoder ends at the last.
        problems: what is wrong with a subclass's own arguments, told together with wrong taps.

    Shapes:
        features[i]: (B, C_i, H/s_i, W/s_i)  ->  image: (B, channels, H, W), as normalised.
    """

    def __init__(
        self, features: Sequence[FeatureInfo], taps: Sequence[int], problems: Sequence[str] = ()
    ) -> None:
        super().__init__()
        raise_all([*problems, *tap_problems(taps, len(features))])
        self.taps = tuple(sorted(taps))

    @property
    def is_pointwise(self) -> bool:
        """Whether a pixel's prediction depends on the feature cells above it alone."""
        return False

    @abstractmethod
    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The image, given F_1 … F_n up to the last tap in use."""

    def branches(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """Images whose sum is the prediction, one per tap where the decoder has such branches."""
        return [self(features)]


def tap_problems(taps: Sequence[int], available: int) -> Iterator[str]:
    """A line unless `taps` are distinct and within 1 … available."""
    known = range(1, available + 1)
    if not taps or len(set(taps)) < len(taps) or not set(taps) <= set(known):
        yield f"taps {list(taps)}: name one or more of {list(known)}, each once"


def kernel_problems(kernel: int) -> Iterator[str]:
    """A line unless `kernel` is odd."""
    if kernel < 1 or kernel % 2 == 0:
        yield f"kernel {kernel}: must be odd, e.g. 1 or 3"


def initialise(decoder: nn.Module) -> None:
    """Small weights, zero bias, so that the loss of step 0 is about E|x| rather than above 1."""
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
