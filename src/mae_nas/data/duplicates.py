"""Near duplicates: images alike up to a small shift, brightness or noise, as a video's frames."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_nas.data.source import Progress
from mae_nas.data.store import ImageStore, shift_of

# Set on CIFAR-10, where of 60,000 images nearly every pair that both let pass shows one object, and
# no pair of a thousand ImageNet photographs does. A shift by 2 % of the side passes, half of those
# by 4 % do.
_MOST_BITS, _LEAST_CORRELATION = 14, 0.9
_SIDE = 16  # of a thumbnail, in pixels
_ORDERS, _REACH = 16, 8  # 16 sorted orders and the order of names; 8 neighbours in each


def near_duplicates(store: ImageStore, on_progress: Progress) -> NDArray[np.int64]:
    """Pairs of positions in the store, the lower one first, exact duplicates left out: (P, 2).

    A pair differs in at most 14 of 112 bits, which say whether a thumbnail's cell is brighter than
    the cell to its left or above it (dHash), and its thumbnails correlate by .9 or more. Images are
    compared with their neighbours in the order of names and in sixteen orders of the bits, so that
    the work grows with the number of images, not with its square; 98 % of CIFAR-10's pairs are
    found so. Images of one colour are near duplicates of none.
    """
    thumbnails = _thumbnails(store, on_progress)
    bits = _bits(thumbnails)
    flat = thumbnails.reshape(len(store), -1)
    mean = flat.mean(axis=1, keepdims=True)
    flat -= mean
    # What is left of one colour is rounding, which must not be taken for a pattern.
    flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-3 * abs(mean) + 1e-12
    packed, digests = np.packbits(bits, axis=1), store.digests
    orders = [np.arange(len(store))]
    for shift in range(0, bits.shape[1], bits.shape[1] // _ORDERS):
        rotated = np.packbits(np.roll(bits, -shift, axis=1), axis=1)
        orders.append(np.lexsort(rotated.T[::-1]))
    found: list[NDArray[np.int64]] = []
    for order in orders:
        for reach in range(1, _REACH + 1):
            pairs = np.sort(np.stack([order[:-reach], order[reach:]]), axis=0)
            apart = np.bitwise_count(packed[pairs[0]] ^ packed[pairs[1]]).sum(axis=1)
            one, other = pairs = pairs[:, apart <= _MOST_BITS]
            correlation = np.einsum("pv,pv->p", flat[one], flat[other])
            differ = (digests[one] != digests[other]).any(axis=1)
            one, other = pairs[:, differ & (correlation >= _LEAST_CORRELATION)]
            found.append(one * len(store) + other)
    return np.stack(np.divmod(np.unique(np.concatenate(found)), len(store)), axis=1)


def _thumbnails(store: ImageStore, on_progress: Progress) -> NDArray[np.float32]:
    """Grey versions: (N, 16, 16)."""
    thumbnails = np.empty((len(store), _SIDE, _SIDE), np.float32)
    for i in range(len(store)):
        grey = store[i].astype(np.float32) @ np.ones(store.channels, np.float32)
        grey = Image.fromarray(grey).resize((_SIDE, _SIDE), Image.Resampling.BOX)
        thumbnails[i] = np.asarray(grey) / store.channels + shift_of(store.pixels)
        on_progress(i + 1, len(store))
    return thumbnails


def _bits(thumbnails: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether the 8 × 8 cells of thumbnails grow brighter to the right and downwards: (N, 112)."""
    half = _SIDE // 2
    cells = thumbnails.reshape(-1, half, 2, half, 2).mean(axis=(2, 4))
    right, down = cells[:, :, 1:] > cells[:, :, :-1], cells[:, 1:] > cells[:, :-1]
    return np.concatenate([right.reshape(len(cells), -1), down.reshape(len(cells), -1)], axis=1)
