"""Windows of images: where they are cut, and how they become normalised batches."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mae_nas.data.store import ImageStore
from mae_nas.randomness import Purpose, fold, integers_below


class Boxes(NamedTuple):
    """Upper left corners of windows, (B,), int64; negative where a window leaves its image."""

    top: Tensor
    left: Tensor


class Extents(NamedTuple):
    """Where images lie in the table of pixels: (N,), int64, or (B,) of one batch."""

    offset: Tensor
    height: Tensor
    width: Tensor

    @classmethod
    def of(cls, store: ImageStore, device: torch.device) -> "Extents":
        """All extents of a store, on a device."""
        arrays = (store.offset, store.height, store.width)
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))

    def at(self, index: Tensor) -> "Extents":
        """Extents of some images."""
        return Extents(self.offset[index], self.height[index], self.width[index])


def crop_boxes(key: int, index: Tensor, extents: Extents, side: int, padding: int) -> Boxes:
    """Random windows of images with a border of `padding`: a pure function of (key, index).

    The border is 0 in original units, before normalisation, as DARTS does.
    """
    keys = fold(key, index)
    top = integers_below(extents.height + (2 * padding - side + 1), fold(keys, Purpose.CROP_TOP))
    left = integers_below(extents.width + (2 * padding - side + 1), fold(keys, Purpose.CROP_LEFT))
    return Boxes(top - padding, left - padding)


def centre_boxes(extents: Extents, side: int) -> Boxes:
    """Windows at the centre, for whatever is not training."""
    half = [torch.div(size - side, 2, rounding_mode="floor") for size in extents[1:]]
    return Boxes(*half)


def sample_flips(key: int, index: Tensor) -> Tensor:
    """Which images are mirrored, half of them on average: bool, (B,)."""
    return integers_below(2, fold(fold(key, index), Purpose.FLIP)) == 1


def gather_resident(
    pixels: Tensor, extents: Extents, boxes: Boxes, side: int, black: int
) -> Tensor:
    """Cut windows from a table on the device, as one flat gather without synchronisation.

    Shapes:
        pixels: (P, C); extents, boxes: (B,)  ->  (B, S, S, C), as stored.
    """
    span = torch.arange(side, device=pixels.device)
    rows = (boxes.top[:, None] + span)[:, :, None]
    columns = (boxes.left[:, None] + span)[:, None, :]
    height, width = extents.height[:, None, None], extents.width[:, None, None]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    address = extents.offset[:, None, None] + rows * width + columns
    address = address.where(inside, extents.offset[:, None, None])
    windows = pixels.index_select(0, address.flatten()).view(*address.shape, pixels.shape[1])
    return windows.masked_fill(~inside[..., None], black)


def gather_host(store: ImageStore, index: Tensor, boxes: Boxes) -> Tensor:
    """Cut windows from the host's memory, image by image, for workers: (B, S, S, C)."""
    side = store.side
    shape = (len(index), side, side, store.channels)
    windows = np.full(shape, store.black, dtype=store.pixels.dtype)
    corners = zip(index.tolist(), boxes.top.tolist(), boxes.left.tolist(), strict=True)
    for window, (i, top, left) in zip(windows, corners, strict=True):
        height, width, start = int(store.height[i]), int(store.width[i]), int(store.offset[i])
        image = store.pixels[start : start + height * width].reshape(height, width, -1)
        upper, lower = max(top, 0), min(top + side, height)
        first, last = max(left, 0), min(left + side, width)
        window[upper - top : lower - top, first - left : last - left] = image[
            upper:lower, first:last
        ]
    return torch.from_numpy(windows)


class Cutter:
    """Cuts windows with equal results from a table on a device, or from the host's memory map.

    Args:
        store: the images.
        padding: border around an image from which random windows may be cut, in pixels.
        resident: the device that keeps all images; None leaves them on the host.
    """

    def __init__(self, store: ImageStore, padding: int, resident: torch.device | None) -> None:
        self.store, self.padding, self.device = store, padding, resident or torch.device("cpu")
        self.extents = Extents.of(store, self.device)
        self.pixels = torch.from_numpy(store.pixels).to(resident) if resident else None

    def cut(self, index: Tensor, key: int | None) -> Tensor:
        """Random windows by `key`, or without one the centres: (B, S, S, C), as stored."""
        index, side = index.to(self.device), self.store.side
        extents = self.extents.at(index)
        if key is None:
            boxes = centre_boxes(extents, side)
        else:
            boxes = crop_boxes(key, index, extents, side, self.padding)
        if self.pixels is None:
            return gather_host(self.store, index, boxes)
        return gather_resident(self.pixels, extents, boxes, side, self.store.black)


class Normalisation(NamedTuple):
    """(stored + shift − mean) / std per channel, in the dtype of `mean` and `std`: (C,)."""

    shift: int
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, store: ImageStore, device: torch.device, dtype: torch.dtype) -> "Normalisation":
        """The normalisation of a store, on a device."""
        moments = store.moments
        mean, std = (torch.from_numpy(x).to(device, dtype) for x in (moments.mean, moments.std))
        return cls(store.shift, mean, std)

    def apply(self, windows: Tensor) -> Tensor:
        """Stored windows (B, S, S, C) -> images (B, C, S, S), channels last in memory."""
        image = (windows.to(self.mean.dtype) + self.shift - self.mean) / self.std
        return image.permute(0, 3, 1, 2)

    def invert(self, image: Tensor) -> Tensor:
        """Images (B, C, S, S) -> original units."""
        return image * self.std[:, None, None] + self.mean[:, None, None]


def mirror(windows: Tensor, flips: Tensor) -> Tensor:
    """Mirror the windows (B, S, S, C) for which `flips` (B,) is true."""
    return torch.where(flips[:, None, None, None], windows.flip(2), windows)
