"""What turns feature maps into class scores (DARTS's evaluation networks)."""

import torch
from torch import Tensor, nn

from mae_nas.masking import BatchNorm


def pooled(features: Tensor) -> Tensor:
    """Mean over all sites: (B, C, H, W) -> (B, C)."""
    return features.mean((2, 3))


class AuxiliaryHead(nn.Module):
    """Class scores from an earlier map, for a second loss in training alone.

    A window of 5 × 5 in each corner is averaged, as DARTS does on maps of 8 (CIFAR) and 7 pixels
    (ImageNet), and maps smaller than 6 pixels are brought to 2 × 2.

    Args:
        channels: of the map.
        side: of the map, in cells.
        classes: number of scores.
        is_normed_twice: whether the second convolution has a norm. DARTS has one on CIFAR and,
            by what its authors call a typo, none on ImageNet.

    Shapes:
        features: (B, channels, side, side)  ->  (B, classes).
    """

    def __init__(self, channels: int, side: int, classes: int, is_normed_twice: bool) -> None:
        super().__init__()
        corners = nn.AvgPool2d(5, side - 5) if side > 5 else nn.AdaptiveAvgPool2d(2)
        self.layers = nn.Sequential(
            nn.ReLU(),
            corners,
            nn.Conv2d(channels, 128, 1, bias=False),
            BatchNorm(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            BatchNorm(768) if is_normed_twice else nn.Identity(),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.layers(features), 1))
