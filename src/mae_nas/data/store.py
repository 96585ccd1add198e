"""The decoded images of a data set, of any size and depth, in one flat table of pixels."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mae_nas.data.arrays import Header

# 16-bit values are kept as int16, which every device can gather, shifted by this offset.
SHIFT = 32768
_CHUNK = 1 << 20  # pixels


@dataclass(frozen=True)
class Moments:
    """What one pass over all pixels tells, in units of the original files.

    Shapes:
        mean, std: (C,), float64. `low` and `high` are over all channels.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    low: float
    high: float

    @classmethod
    def of_images(cls, store: "ImageStore", positions: NDArray[np.int64]) -> Self:
        """Of some of a store's images, as `of` measures a table."""
        total, count = np.zeros(store.channels), 0
        low, high = np.inf, -np.inf
        for position in positions:
            values = store[position].reshape(-1, store.channels).astype(np.float64)
            total, count = total + values.sum(axis=0), count + len(values)
            low, high = min(low, float(values.min())), max(high, float(values.max()))
        mean = total / count
        square = np.zeros(store.channels)
        for position in positions:
            values = store[position].reshape(-1, store.channels).astype(np.float64)
            square += ((values - mean) ** 2).sum(axis=0)
        std = np.sqrt(square / count)
        std[std == 0] = 1.0
        shift = shift_of(store.pixels)
        return cls(mean + shift, std, low + shift, high + shift)

    @classmethod
    def of(cls, pixels: NDArray[np.generic]) -> Self:
        """Measure a (P, C) table in two passes, since one pass cancels for large means."""
        total, square = np.zeros((2, pixels.shape[1]))
        low, high = np.inf, -np.inf
        for chunk in _chunks(pixels):
            total += chunk.sum(axis=0)
            low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
        mean = total / len(pixels)
        for chunk in _chunks(pixels):
            square += ((chunk - mean) ** 2).sum(axis=0)
        std = np.sqrt(square / len(pixels))
        std[std == 0] = 1.0  # a constant channel normalises to 0, not to NaN
        return cls(mean, std, low, high)


def shift_of(pixels: NDArray[np.generic]) -> int:
    """Original values minus stored ones; what pads windows is 0 in original units."""
    return SHIFT if pixels.dtype == np.int16 else 0


def _chunks(pixels: NDArray[np.generic]) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(pixels), _CHUNK):
        yield pixels[start : start + _CHUNK].astype(np.float64) + shift_of(pixels)


@dataclass(frozen=True, kw_only=True)
class ImageStore:
    """Images (height × width × channels) laid end to end; short sides are at least `side`.

    Args:
        pixels: table of all pixels, row after row, image after image.
        sizes: height and width of each image, in pixels.
        side: of the square windows that are cut from the images, in pixels.
        files: a name per image; its folders are what `data.group` reads.
        moments: mean, standard deviation and range of the pixels.
        digests: of each image's bytes; equal ones are exact duplicates.
        skipped: (file, reason) of what could not be read.
        headers: what each file says of itself; none of images that were no files of their own.
        labels: class of each image; search never reads it.
        classes: their names, by number.
        cache: the folder that `pixels` is mapped from, if it is.

    Shapes:
        pixels: (P, C), uint8, int16 (value − 32768) or float32; sizes: (N, 2), int64;
        digests: (N, 16), uint8; labels: (N,), int64.
    """

    pixels: NDArray[np.generic]
    sizes: NDArray[np.int64]
    side: int
    files: Sequence[str]
    moments: Moments
    digests: NDArray[np.uint8]
    skipped: Sequence[tuple[str, str]] = ()
    headers: Sequence[Header] = ()
    labels: NDArray[np.int64] | None = None
    classes: Sequence[str] = ()
    cache: Path | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> NDArray[np.generic]:
        """One image as stored: (height, width, C)."""
        height, width = self.sizes[number]
        start = self.offset[number]
        return self.pixels[start : start + height * width].reshape(height, width, -1)

    def __getstate__(self) -> dict[str, object]:
        # A memory map would be pickled by value: workers that are spawned map the file again.
        state = dict(self.__dict__)
        if isinstance(self.pixels, np.memmap):
            state["pixels"] = (str(self.pixels.filename), self.pixels.dtype, self.pixels.shape)
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        if isinstance(state["pixels"], tuple):
            state["pixels"] = map_pixels(*state["pixels"])
        self.__dict__.update(state)

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    @functools.cached_property
    def offset(self) -> NDArray[np.int64]:
        """First row of each image in the table: (N,), int64."""
        areas = self.sizes.prod(axis=1)
        return np.cumsum(areas) - areas

    def labelled_by_folder(self) -> Self:
        """The same store, whose labels are the numbers of the class folders CLASS/…/FILE."""
        names, numbers = np.unique(
            [name.partition("/")[0] for name in self.files], return_inverse=True
        )
        return replace(self, labels=numbers.astype(np.int64), classes=tuple(map(str, names)))


def map_pixels(file: str | Path, dtype: np.dtype, shape: tuple[int, int]) -> NDArray[np.generic]:
    """Map a file of pixels; copy-on-write, since PyTorch warns of arrays that are read-only."""
    return np.memmap(file, dtype=dtype, mode="c", shape=shape)
