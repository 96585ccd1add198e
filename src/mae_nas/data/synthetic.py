"""Smooth patterns without a file or a download: for tests."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mae_nas.data.assemble import store_of_arrays
from mae_nas.data.source import ImageSource, Progress
from mae_nas.data.store import ImageStore


@dataclass(kw_only=True)
class Synthetic(ImageSource):
    """Plane waves whose direction, length and phase depend on the image's number alone.

    Args:
        images: how many.
        channels: of each image.
    """

    images: int = 256
    channels: int = 3

    natural_side: ClassVar[int | None] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 1 or self.channels < 1:
            raise ValueError(
                f"data.images, data.channels: {self.images}, {self.channels}; both are 1 or more"
            )

    def known_channels(self) -> int | None:
        """The channels asked for."""
        return self.channels

    def load(self, on_progress: Progress | None = None) -> ImageStore:  # noqa: ARG002 - no files
        """Draw all patterns."""
        side = self.known_side() or 32
        number = np.arange(self.images)[:, None, None, None]
        channel = np.arange(self.channels)
        row, column = np.mgrid[:side, :side][..., None] / side
        angle, cycles = number * 2.399963, 1 + number % 3  # the golden angle: no two alike
        across = column * np.cos(angle) + row * np.sin(angle)
        wave = np.sin(2 * np.pi * cycles * across + number + channel)
        images = np.rint(127.5 + 127.5 * wave).astype(np.uint8)
        return store_of_arrays(images, [f"{i:04d}" for i in range(self.images)], side)
