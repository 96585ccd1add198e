"""Embedded photographs, cut into tiles."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mae_nas.data.assemble import store_of_arrays
from mae_nas.data.source import ImageSource, Progress
from mae_nas.data.store import ImageStore


@dataclass(kw_only=True)
class Photos(ImageSource):
    """Tiles of scikit-learn's two photographs (427×640, RGB): 3,080 of 32×32 pixels.

    Each photograph is cut into horizontal bands, which share no pixel and are the groups of the
    split (`group=parent`); within a band tiles overlap, a quarter of a side apart.
    """

    group: str = "parent"

    natural_side: ClassVar[int | None] = 32
    natural_channels: ClassVar[int | None] = 3

    def load(self, on_progress: Progress | None = None) -> ImageStore:  # noqa: ARG002 - no files
        """Cut all tiles; a name is photograph/band/tile."""
        from sklearn.datasets import load_sample_images  # a second to import

        side = self.known_side() or 32
        tiles: list[NDArray[np.uint8]] = []
        names: list[str] = []
        for photograph, image in zip(("china", "flower"), load_sample_images().images, strict=True):
            for band, rows in enumerate(_bands(image, side)):
                cut = _tiles(rows, side)
                tiles += cut
                names += [f"{photograph}/{band:02d}/{i:03d}" for i in range(len(cut))]
        if not tiles:
            raise ValueError(f"data.side: no tile of {side} pixels fits photographs of 427×640")
        return store_of_arrays(tiles, names, side)


def _step(side: int) -> int:
    return max(1, side // 4)


def _bands(image: NDArray[np.uint8], side: int) -> list[NDArray[np.uint8]]:
    height = side + _step(side)  # room for two tiles, one a step below the other
    return [image[top : top + height] for top in range(0, len(image) - height + 1, height)]


def _tiles(band: NDArray[np.uint8], side: int) -> list[NDArray[np.uint8]]:
    height, width = band.shape[:2]
    return [
        band[top : top + side, left : left + side]
        for top in range(0, height - side + 1, _step(side))
        for left in range(0, width - side + 1, _step(side))
    ]
