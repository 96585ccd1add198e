"""Make the images of one data set agree in channels, depth and short side."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_nas.data.arrays import Header, UnreadableImageError, check_size
from mae_nas.data.store import SHIFT

SIDES = (32, 64, 96, 128, 224)
_FULL_SCALE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}  # narrow to wide
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def choose_side(headers: Sequence[Header], side: int | Literal["auto"]) -> int:
    """The wanted side, or the one of SIDES that is nearest to the median short side."""
    if side != "auto":
        return side
    median = statistics.median(min(header.height, header.width) for header in headers)
    return min(SIDES, key=lambda candidate: abs(candidate - median))


def choose_channels(headers: Iterable[Header], channels: int | Literal["auto"]) -> int:
    """The wanted channels, or N if most images have N, else 1 if all are grey, else 3."""
    if channels != "auto":
        return channels
    counts = Counter(header.channels for header in headers)
    pictures = {1: counts.pop(1, 0), 3: counts.pop(3, 0)}
    stack, how_many = counts.most_common(1)[0] if counts else (0, 0)
    if how_many > sum(pictures.values()):
        return stack
    return 3 if pictures[3] else 1


def choose_dtype(headers: Iterable[Header]) -> str:
    """The widest depth present: uint8, uint16 or float32."""
    return max((header.dtype for header in headers), key=list(_FULL_SCALE).index)


def scaled_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width once the short side is `side` pixels; the long side is kept."""
    short = min(height, width)
    return round(height * side / short), round(width * side / short)


def conform(
    array: NDArray[np.generic], side: int, channels: int, dtype: str
) -> NDArray[np.generic]:
    """Convert channels, widen the depth and resize, in this order, or say why that cannot be."""
    return resize(_widen(_with_channels(array, channels), dtype), side)


def resize(array: NDArray[np.generic], side: int) -> NDArray[np.generic]:
    """Antialiased bilinear resizing of the short side to `side`; not a bit changes if it is so."""
    height, width = array.shape[:2]
    if min(height, width) == side:
        return array
    height, width = scaled_size(height, width, side)
    check_size(height, width)
    precise = array if array.dtype == np.uint8 else array.astype(np.float32)
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(precise, 2, 0)]
    resized = [plane.resize((width, height), Image.Resampling.BILINEAR) for plane in planes]
    scaled = np.stack([np.asarray(plane) for plane in resized], axis=2)
    return (np.rint(scaled) if array.dtype == np.uint16 else scaled).astype(array.dtype)


def to_stored(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Pixels as the store keeps them: (H·W, C), 16 bits as int16 (value − 32768)."""
    if array.dtype == np.uint16:
        array = (array.astype(np.int32) - SHIFT).astype(np.int16)
    return array.reshape(-1, array.shape[2])


def _with_channels(array: NDArray[np.generic], channels: int) -> NDArray[np.generic]:
    present = array.shape[2]
    if present == channels:
        return array
    if (present, channels) == (1, 3):
        return np.repeat(array, 3, axis=2)
    if (present, channels) == (3, 1):
        grey = (array.astype(np.float64) @ np.array(_LUMINANCE))[..., None]
        return (grey if array.dtype == np.float32 else np.rint(grey)).astype(array.dtype)
    raise UnreadableImageError(f"has {present} channels where {channels} are wanted")


def _widen(array: NDArray[np.generic], dtype: str) -> NDArray[np.generic]:
    """Wider integers span the same range; among floats, integers are fractions of full scale."""
    present = array.dtype.name
    if present == dtype:
        return array
    if (present, dtype) == ("uint8", "uint16"):
        return array.astype(np.uint16) * np.uint16(257)
    if dtype == "float32":
        return (array.astype(np.float64) / _FULL_SCALE[present]).astype(np.float32)
    raise UnreadableImageError(f"holds {present} values where {dtype} are wanted")
