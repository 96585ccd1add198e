"""Windows of images: where they are cut, and how they become normalised batches."""

import numpy as np
import torch
from torch import Tensor

from mae_nas.data.augment import Augmentation
from mae_nas.data.store import ImageStore, shift_of
from mae_nas.randomness import Purpose, fold, integers_below

_POSITIVE = (1 << 62) - 1


def random_corners(key: int, index: Tensor, sizes: Tensor, side: int, padding: int) -> Tensor:
    """Upper left corners of random windows of images with a border of `padding`: (B, 2), int64.

    A pure function of (key, index); corners are negative where a window leaves its image. The
    border is 0 in original units, before normalisation, as DARTS does.

    Shapes:
        index: (B,); sizes: (B, 2), height and width of each image.
    """
    keys = fold(key, index)
    room_down, room_right = (sizes + (2 * padding - side + 1)).unbind(1)
    top = integers_below(room_down, fold(keys, Purpose.CROP_TOP))
    left = integers_below(room_right, fold(keys, Purpose.CROP_LEFT))
    return torch.stack([top, left], 1) - padding


class Cutter:
    """Cuts windows with equal results from a table on a device, or from the host's memory map.

    Args:
        store: the images.
        padding: border around an image from which random windows may be cut, in pixels.
        resident: the device that keeps all images; None leaves them on the host.
        augmentation: of random windows.
    """

    def __init__(
        self,
        store: ImageStore,
        padding: int,
        resident: torch.device | None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.augmentation = augmentation or None
        self.store, self.padding, self.device = store, padding, resident or torch.device("cpu")
        self.offset = torch.from_numpy(store.offset).to(self.device)
        self.sizes = torch.from_numpy(store.sizes).to(self.device)
        self.pixels = torch.from_numpy(store.pixels).to(resident) if resident else None

    def cut(self, index: Tensor, key: int | None) -> Tensor:
        """Random windows by `key`, or without one the centres: (B, S, S, C), as stored."""
        index = index.to(self.device)
        sizes, side = self.sizes[index], self.store.side
        if key is None:
            corners = (sizes - side) // 2
        else:
            corners = random_corners(key, index, sizes, side, self.padding)
        if self.pixels is None:
            windows = self._gather_host(index, corners)
        else:
            windows = self._gather_resident(self.pixels, index, corners)
        if self.augmentation is None or key is None:
            return windows
        return self._vary(self.augmentation, windows, index, key)

    def _vary(self, augmentation: Augmentation, windows: Tensor, index: Tensor, key: int) -> Tensor:
        seeds = fold(fold(key, index), Purpose.AUGMENT) & _POSITIVE
        # A resized crop is one of the whole image.
        images = (
            self.store[i] if augmentation.smallest_crop else window
            for i, window in zip(index.tolist(), windows.cpu().numpy(), strict=True)
        )
        varied = [
            augmentation.vary(image, seed, self.store.side)
            for image, seed in zip(images, seeds.tolist(), strict=True)
        ]
        return torch.from_numpy(np.stack(varied))

    def _gather_host(self, index: Tensor, corners: Tensor) -> Tensor:
        """Image by image, for workers."""
        side = self.store.side
        shape = (len(index), side, side, self.store.channels)
        windows = np.full(shape, -shift_of(self.store.pixels), dtype=self.store.pixels.dtype)
        for window, i, (top, left) in zip(windows, index.tolist(), corners.tolist(), strict=True):
            rows, columns = (slice(max(start, 0), max(start + side, 0)) for start in (top, left))
            part = self.store[i][rows, columns]
            inside = window[max(-top, 0) :, max(-left, 0) :]
            inside[: part.shape[0], : part.shape[1]] = part
        return torch.from_numpy(windows)

    def _gather_resident(self, pixels: Tensor, index: Tensor, corners: Tensor) -> Tensor:
        """One flat gather from the table (P, C), without synchronisation."""
        span = torch.arange(self.store.side, device=pixels.device)
        top, left, start, height, width = (
            x[:, None, None]
            for x in (*corners.unbind(1), self.offset[index], *self.sizes[index].unbind(1))
        )
        rows, columns = top + span[:, None], left + span
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        address = (start + rows * width + columns).where(inside, start)
        windows = pixels.index_select(0, address.flatten()).view(*address.shape, -1)
        return windows.masked_fill(~inside[..., None], -shift_of(self.store.pixels))


class Normalisation:
    """(stored + shift − mean) / std per channel, on a device, in a dtype."""

    def __init__(self, store: ImageStore, device: torch.device, dtype: torch.dtype) -> None:
        self.shift = shift_of(store.pixels)
        self.mean = torch.from_numpy(store.moments.mean).to(device, dtype)
        self.std = torch.from_numpy(store.moments.std).to(device, dtype)

    def apply(self, windows: Tensor) -> Tensor:
        """Stored windows (B, S, S, C) -> images (B, C, S, S), channels last in memory."""
        image = (windows.to(self.mean.dtype) + self.shift - self.mean) / self.std
        return image.permute(0, 3, 1, 2)

    def invert(self, image: Tensor) -> Tensor:
        """Images (B, C, S, S) -> original units."""
        return image * self.std[:, None, None] + self.mean[:, None, None]


def mirror_half(windows: Tensor, key: int, index: Tensor) -> Tensor:
    """Mirror windows (B, S, S, C), half of them on average: a pure function of (key, index)."""
    flips = integers_below(2, fold(fold(key, index), Purpose.FLIP)) == 1
    return torch.where(flips[:, None, None, None], windows.flip(2), windows)
