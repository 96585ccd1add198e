"""One file -> one array (height, width, channels) of uint8, uint16 or float32.

Grey, palette, CMYK and images with transparency become grey or RGB here; bit depth survives.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from mae_nas.data import arrays
from mae_nas.data.arrays import Header, UnreadableImageError

_PNG = b"\x89PNG\r\n\x1a\n"
# Pillow reads colour PNG of 16 bits as 8 bits; channels by colour type, without alpha.
_DEEP_PNG = {2: 3, 4: 1, 6: 3}
_GREY = ("1", "L", "LA", "La")


def read_header(path: Path) -> Header:
    """Size, channels and depth of an image file; its pixels are not decoded.

    Raises:
        UnreadableImageError: with the reason in a few words.
    """
    if not path.is_file():  # opening a pipe would wait for ever
        raise UnreadableImageError("a broken link or not a regular file")
    with _reasons(), path.open("rb") as file:
        start = file.read(32)
        array = arrays.find_array(file)
        if array is not None:
            return arrays.header_of(array)
        with Image.open(file) as image:
            return _pillow_header(image, start)


def decode(content: bytes) -> NDArray[np.generic]:
    """All pixels of an image file, (height, width, channels), upright as its EXIF data says.

    Of an animation, the first frame.

    Raises:
        UnreadableImageError: with the reason in a few words.
    """
    with _reasons():
        file = BytesIO(content)
        array = arrays.find_array(file)
        if array is not None:
            return arrays.pixels_of(array)
        with Image.open(file) as image:
            header = _pillow_header(image, content)
            if _deep_png_channels(content):
                return _read_deep_png(content)
            return _pixels(ImageOps.exif_transpose(image), header)


@contextmanager
def _reasons() -> Iterator[None]:
    try:
        yield
    except UnreadableImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImageError(arrays.TOO_LARGE) from None
    except Image.UnidentifiedImageError:
        raise UnreadableImageError("not an image, or a damaged one") from None
    except Exception as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImageError(text.splitlines()[0]) from error


def _deep_png_channels(start: bytes) -> int | None:
    is_deep = start.startswith(_PNG) and len(start) > 25 and start[24] == 16
    return _DEEP_PNG.get(start[25]) if is_deep else None


def _pillow_header(image: Image.Image, start: bytes) -> Header:
    mode, name = image.mode, image.format or ""
    if deep := _deep_png_channels(start):
        channels, dtype = deep, "uint16"
    elif mode.startswith("I;16") or (mode == "I" and name == "PPM"):
        channels, dtype = 1, "uint16"
    elif mode in ("I", "F"):
        channels, dtype = 1, "float32"
    else:
        channels, dtype = 1 if mode in _GREY else 3, "uint8"
    return Header(image.height, image.width, channels, dtype, name, mode)


def _pixels(image: Image.Image, header: Header) -> NDArray[np.generic]:
    if header.dtype != "uint8":
        return arrays.supported(np.asarray(image)).astype(header.dtype)[..., None]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    array = np.asarray(image.convert("L" if header.channels == 1 else "RGB"))
    return array.reshape(*array.shape[:2], header.channels)


def _read_deep_png(content: bytes) -> NDArray[np.generic]:
    """Both bytes of each value: Pillow unpacks the upper ones, or the lower ones, as it is told."""
    if content[25] == 4:  # grey and alpha: four bytes, which pass for RGBA
        pairs = _unpack_png(content, "RGBA", "RGBA")
        upper, lower = pairs[..., 0::2], pairs[..., 1::2]
    else:
        mode = "RGB" if content[25] == 2 else "RGBA"
        upper, lower = (_unpack_png(content, mode, f"{mode};16{end}") for end in "BL")
    array = upper * np.uint16(256) + lower
    if array.shape[2] in (2, 4):  # the last channel is alpha: composite on white
        alpha = array[..., -1:] / 65535.0
        array = np.rint(array[..., :-1] * alpha + 65535.0 * (1 - alpha)).astype(np.uint16)
    return array


def _unpack_png(content: bytes, mode: str, raw_mode: str) -> NDArray[np.uint16]:
    with Image.open(BytesIO(content)) as image:
        image._mode = mode
        codec, extents, offset, _ = image.tile[0]
        image.tile = [ImageFile._Tile(codec, extents, offset, raw_mode)]
        return np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)
