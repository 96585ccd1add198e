"""Scientific files: TIFF beyond eight bits or four channels, and NPY, read without pickles."""

import logging
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray

MAX_PIXELS = 89_478_485  # per image: Pillow's own limit against decompression bombs
TOO_LARGE = f"more than {MAX_PIXELS:,} pixels"
_NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_UINT, _FLOAT = 1, 3  # TIFF sample formats
_COLOUR = (2, 5, 6, 8)  # TIFF photometric interpretations: RGB, CMYK, YCbCr, CIELAB
_ALPHA = [(1,), (2,)]  # TIFF extra samples

StoredArray = NDArray[np.generic] | tifffile.TiffPage | tifffile.TiffPageSeries

# Its remarks on damaged files would reach the terminal; the reason is in the exception.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


class UnreadableImageError(ValueError):
    """Why one file cannot be used, in a few words; the file is skipped and reported."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself before its pixels are decoded; alpha is not a channel."""

    height: int
    width: int
    channels: int
    dtype: str  # uint8 | uint16 | float32
    format: str  # JPEG
    mode: str  # as Pillow names it, or the type of an array's values

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.channels) < 1:
            raise UnreadableImageError("an image without pixels")
        check_size(self.height, self.width, self.channels)


def check_size(height: int, width: int, channels: int = 1) -> None:
    """Refuse decompression bombs."""
    if height * width * max(1, channels / 4) > MAX_PIXELS:
        raise UnreadableImageError(TOO_LARGE if channels <= 4 else f"{TOO_LARGE} of four channels")


def supported(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Any real array as uint8, uint16 or float32; other integers become float32."""
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.name in ("uint8", "uint16"):
        return array.astype(array.dtype.newbyteorder("="))
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UnreadableImageError("holds NaN or infinite values")
    return array


def find_array(file: BinaryIO) -> StoredArray | None:
    """The array of an NPY or TIFF file, to be decoded; None if Pillow reads it without loss.

    Of a TIFF file, the stack if it declares one, else the first page.
    """
    file.seek(0)
    start = file.read(8)
    file.seek(0)
    if not start:
        raise UnreadableImageError("empty file")
    if start.startswith(_NPY):
        if isinstance(file, BytesIO):
            return np.load(file, allow_pickle=False)
        return np.load(file.name, mmap_mode="r", allow_pickle=False)
    if not start.startswith(_TIFF):
        return None
    tiff = tifffile.TiffFile(file)
    if len(tiff.pages) > 1 and (tiff.is_shaped or tiff.is_imagej or tiff.is_ome):
        return tiff.series[0]
    page = tiff.pages.first
    file.seek(0)
    return None if _suits_pillow(page) else page


def _suits_pillow(page: tifffile.TiffPage) -> bool:
    samples, bits, kind = page.samplesperpixel, page.bitspersample, page.sampleformat
    if samples == 1:
        return (bits <= 16 and kind == _UINT and bits != 12) or (bits == 32 and kind == _FLOAT)
    is_colour = samples in (3, 4) and page.photometric in _COLOUR
    is_grey_alpha = samples == 2 and page.extrasamples[:1] in _ALPHA
    return bits == 8 and (is_colour or is_grey_alpha)


def header_of(array: StoredArray) -> Header:
    """Header of an array with 2 axes, or 3 of which the shortest outer one is channels."""
    shape, dtype = array.shape, array.dtype
    if len(shape) not in (2, 3):
        raise UnreadableImageError(f"has {len(shape)} axes; an image has 2, or 3 with channels")
    if dtype is None or dtype.kind not in "buif":
        raise UnreadableImageError(f"holds values of type {dtype}, not numbers")
    shape = (*shape, 1)[:3]
    height, width, channels = (shape[axis] for axis in _axes(shape))
    names = {"bool": "uint8", "uint8": "uint8", "uint16": "uint16"}
    kind = "NPY" if isinstance(array, np.ndarray) else "TIFF"
    return Header(height, width, channels, names.get(dtype.name, "float32"), kind, dtype.name)


def pixels_of(array: StoredArray) -> NDArray[np.generic]:
    """H×W, H×W×C or C×H×W -> (H, W, C), of a supported type."""
    header_of(array)  # or why it cannot be used, before it is decoded
    pixels = array if isinstance(array, np.ndarray) else array.asarray()
    pixels = pixels.reshape((*pixels.shape, 1)[:3])
    return supported(np.ascontiguousarray(pixels.transpose(_axes(pixels.shape))))


def _axes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels, which are the shorter outer axis: C×H×W or H×W×C."""
    return (1, 2, 0) if shape[0] < shape[-1] else (0, 1, 2)
