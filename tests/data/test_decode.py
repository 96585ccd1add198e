import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from mae_nas.data.arrays import UnreadableImageError
from mae_nas.data.decode import decode, read_header

LEVELS = np.arange(4096, dtype=np.uint16).reshape(32, 128)  # all of a twelve-bit scan
COLOUR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep_png(array: NDArray[np.uint16], colour: int) -> bytes:
    pixel = 2 * array.shape[2]  # bytes
    rows = b""
    for row in array:  # filter 1: the difference to the pixel on the left
        values = np.frombuffer(row.astype(">u2").tobytes(), np.uint8)
        left = np.concatenate([np.zeros(pixel, np.uint8), values[:-pixel]])
        rows += b"\1" + (values - left).tobytes()
    return png(array.shape[1], array.shape[0], 16, colour, rows)


def tiff(array: NDArray[np.generic], **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def npy(array: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header_of(content: bytes, folder: Path) -> tuple[int, int, int, str]:
    path = folder / "file"
    path.write_bytes(content)
    header = read_header(path)
    return header.height, header.width, header.channels, header.dtype


def test_one_bit_grey_and_rgb_keep_their_values(tmp_path: Path) -> None:
    bits = COLOUR[..., 0] > 127
    cases = [
        (encode(Image.fromarray(bits)), bits[..., None] * np.uint8(255)),
        (encode(Image.fromarray(COLOUR[..., 0])), COLOUR[..., :1]),
        (encode(Image.fromarray(COLOUR)), COLOUR),
        (encode(Image.fromarray(COLOUR), "BMP"), COLOUR),
        (tiff(COLOUR), COLOUR),
    ]
    for content, expected in cases:
        np.testing.assert_array_equal(decode(content), expected, strict=True)
        assert header_of(content, tmp_path) == (*expected.shape, "uint8")


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    alpha = np.full((5, 7), 51, np.uint8)  # a fifth
    expected = np.rint(COLOUR * 0.2 + 255 * 0.8)
    rgba = encode(Image.fromarray(np.dstack([COLOUR, alpha])))
    grey = encode(Image.fromarray(np.dstack([COLOUR[..., 0], alpha])))
    assert np.abs(decode(rgba) - expected).max() <= 1
    assert np.abs(decode(grey) - expected[..., :1]).max() <= 1
    assert header_of(rgba, tmp_path)[2] == 3
    assert header_of(grey, tmp_path)[2] == 1


def test_palette_becomes_rgb_and_its_transparent_entry_white(tmp_path: Path) -> None:
    image = Image.new("P", (3, 2))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((2, 1), 1)
    content = encode(image, transparency=0)
    array = decode(content)
    assert array.shape == (2, 3, 3)
    assert array[1, 2].tolist() == [200, 100, 50]
    assert (array[0] == 255).all()
    assert header_of(content, tmp_path) == (2, 3, 3, "uint8")
    assert decode(encode(image))[0, 0].tolist() == [10, 20, 30]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    content = encode(Image.new("CMYK", (7, 5), (255, 0, 0, 0)), "TIFF")
    np.testing.assert_array_equal(decode(content), np.full((5, 7, 3), (0, 255, 255), np.uint8))
    assert header_of(content, tmp_path) == (5, 7, 3, "uint8")


@pytest.mark.parametrize(
    "content",
    [encode(Image.fromarray(LEVELS)), tiff(LEVELS), npy(LEVELS), tiff(LEVELS, byteorder=">")],
    ids=["png", "tiff", "npy", "big-endian tiff"],
)
def test_sixteen_bit_grey_survives(content: bytes, tmp_path: Path) -> None:
    np.testing.assert_array_equal(decode(content), LEVELS[..., None], strict=True)
    assert header_of(content, tmp_path) == (32, 128, 1, "uint16")


def test_sixteen_bit_colour_survives(tmp_path: Path) -> None:
    colour = np.dstack([LEVELS, LEVELS[::-1], LEVELS + 30000])
    for content in (deep_png(colour, 2), tiff(colour), npy(colour)):
        np.testing.assert_array_equal(decode(content), colour, strict=True)
        assert header_of(content, tmp_path) == (32, 128, 3, "uint16")


def test_sixteen_bit_transparency_is_composited_on_white(tmp_path: Path) -> None:
    for colour, channels in ((4, 1), (6, 3)):
        values = np.dstack([LEVELS, LEVELS.T.reshape(LEVELS.shape), LEVELS[::-1]])[..., :channels]
        content = deep_png(np.dstack([values, np.full_like(LEVELS, 13107)]), colour)
        np.testing.assert_array_equal(decode(content), np.rint(values * 0.2 + 65535 * 0.8))
        assert header_of(content, tmp_path) == (32, 128, channels, "uint16")


def test_stacks_of_n_channels_survive(tmp_path: Path) -> None:
    stack = np.random.default_rng(1).integers(0, 65536, (9, 11, 5), np.uint16)
    planes = np.ascontiguousarray(np.moveaxis(stack, 2, 0))
    contents = [
        npy(stack),
        npy(planes),
        tiff(planes),
        tiff(stack, photometric="minisblack", planarconfig="contig"),
        tiff(planes, photometric="minisblack", planarconfig="separate"),
    ]
    for content in contents:
        np.testing.assert_array_equal(decode(content), stack, strict=True)
        assert header_of(content, tmp_path) == (9, 11, 5, "uint16")


def test_floats_stay_floats_and_other_integers_become_floats(tmp_path: Path) -> None:
    values = np.linspace(-3, 4, 35).reshape(5, 7)
    for array in (values, values.astype(np.float32), np.arange(35).reshape(5, 7) - 1000):
        for content in (npy(array), tiff(array)):
            expected = array.astype(np.float32)[..., None]
            np.testing.assert_array_equal(decode(content), expected, strict=True)
            assert header_of(content, tmp_path) == (5, 7, 1, "float32")


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (7, 5), colour) for colour in ("red", "blue", "lime")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decode(content), np.full((5, 7, 3), (255, 0, 0), np.uint8))


def test_exif_orientation_is_honoured() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned = decode(encode(Image.fromarray(COLOUR), exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(COLOUR, -1))


def test_a_single_pixel_is_an_image() -> None:
    assert decode(encode(Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]


BOMB = png(20000, 20000, 8, 0, b"")
LARGE = png(10000, 10000, 8, 0, b"")  # Pillow only warns
JPEG = encode(
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64), np.uint8)), "JPEG"
)
UNREADABLE = {
    "empty": (b"", "empty file"),
    "text": (b"not an image at all", "not an image"),
    "bomb": (BOMB, "more than 89,478,485 pixels"),
    "large": (LARGE, "more than 89,478,485 pixels"),
    "four axes": (npy(np.zeros((2, 3, 4, 5))), "4 axes"),
    "objects": (b"\x93NUMPY\x01\x00\x2e\x00{'descr': '|O', 'fortran_order': False, }", ""),
    "complex": (npy(np.zeros((3, 4), complex)), "complex128"),
    "no pixels": (npy(np.zeros((0, 4))), ""),
    "nan": (npy(np.full((3, 4), np.nan)), "NaN"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated npy": (npy(np.zeros((30, 40)))[:-50], ""),
    "truncated tiff": (tiff(LEVELS)[:900], ""),
    "truncated png": (deep_png(np.dstack([LEVELS] * 3), 2)[:80], ""),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_file_gives_a_reason_of_one_line(case: str) -> None:
    content, words = UNREADABLE[case]
    with pytest.raises(UnreadableImageError, match=words) as raised:
        decode(content)
    assert str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["empty", "text", "bomb", "large", "four axes", "complex"])
def test_unreadable_header_gives_the_same_reason(case: str, tmp_path: Path) -> None:
    content, words = UNREADABLE[case]
    with pytest.raises(UnreadableImageError, match=words):
        header_of(content, tmp_path)


def test_object_arrays_are_never_unpickled() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableImageError, match="allow_pickle"):
        decode(buffer.getvalue())
