"""Images that need no file of the user's: digits, photographs and synthetic patterns."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mae_nas.data.loading import store_of_arrays
from mae_nas.data.source import ImageSource, Progress
from mae_nas.data.store import ImageStore


@dataclass(kw_only=True)
class Digits(ImageSource):
    """scikit-learn's 1,797 scans of digits, 8×8 pixels in 17 levels, resized; one channel."""

    flip: bool = False

    natural_side = 32
    natural_channels = 1

    def load(self, on_progress: Progress | None = None) -> ImageStore:  # noqa: ARG002 - no files
        from sklearn.datasets import load_digits  # a second to import

        scans, labels = load_digits(return_X_y=True)
        images = np.rint(scans.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
        names = [f"{i:04d}" for i in range(len(images))]
        side, classes = self.known_side() or 32, [str(digit) for digit in range(10)]
        return store_of_arrays(images, names, side, labels.astype(np.int64), classes)


@dataclass(kw_only=True)
class Photos(ImageSource):
    """Tiles of scikit-learn's two photographs (427×640, RGB): 3,080 of 32×32 pixels.

    Each photograph is cut into horizontal bands, which share no pixel and are the groups of the
    split (`group=parent`); within a band tiles overlap, a quarter of a side apart.
    """

    group: str = "parent"

    natural_side = 32
    natural_channels = 3

    def load(self, on_progress: Progress | None = None) -> ImageStore:  # noqa: ARG002 - no files
        """Cut all tiles; a name is photograph/band/tile."""
        from sklearn.datasets import load_sample_images  # a second to import

        side = self.known_side() or 32
        step = max(1, side // 4)
        height = side + step  # of a band: room for two tiles, one a step below the other
        tiles: list[NDArray[np.uint8]] = []
        names: list[str] = []
        for photograph, image in zip(("china", "flower"), load_sample_images().images, strict=True):
            for band, top in enumerate(range(0, len(image) - height + 1, height)):
                windows = sliding_window_view(image[top : top + height], (side, side), (0, 1))
                cut = np.moveaxis(windows[::step, ::step], 2, -1).reshape(-1, side, side, 3)
                tiles.extend(cut)
                names += [f"{photograph}/{band:02d}/{i:03d}" for i in range(len(cut))]
        if not tiles:
            raise ValueError(f"data.side: no tile of {side} pixels fits photographs of 427×640")
        return store_of_arrays(tiles, names, side)


@dataclass(kw_only=True)
class Synthetic(ImageSource):
    """Plane waves whose direction, length and phase depend on the image's number: for tests.

    Args:
        images: how many.
        channels: of each image.
    """

    images: int = 256
    channels: int = 3

    natural_side = 32

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.images < 1 or self.channels < 1:
            yield f"data.images, data.channels: {self.images}, {self.channels}; both are 1 or more"

    def known_channels(self) -> int:
        return self.channels

    def load(self, on_progress: Progress | None = None) -> ImageStore:  # noqa: ARG002 - no files
        side = self.known_side() or 32
        number = np.arange(self.images)[:, None, None, None]
        channel = np.arange(self.channels)
        row, column = np.mgrid[:side, :side][..., None] / side
        angle, cycles = number * 2.399963, 1 + number % 3  # the golden angle: no two alike
        across = column * np.cos(angle) + row * np.sin(angle)
        wave = np.sin(2 * np.pi * cycles * across + number + channel)
        images = np.rint(127.5 + 127.5 * wave).astype(np.uint8)
        return store_of_arrays(images, [f"{i:04d}" for i in range(self.images)], side)
