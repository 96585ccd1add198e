import numpy as np
import pytest

from mae_nas.data.arrays import Header, UnreadableImageError
from mae_nas.data.convert import choose_channels, choose_dtype, choose_side, conform, resize

GENERATOR = np.random.default_rng(3)


def header(height: int = 9, width: int = 8, channels: int = 3, dtype: str = "uint8") -> Header:
    return Header(height, width, channels, dtype, "PNG", "RGB")


@pytest.mark.parametrize(
    ("shorts", "side"), [([8, 30, 31], 32), ([47, 49], 32), ([81, 90, 500], 96), ([4000], 224)]
)
def test_side_is_the_nearest_to_the_median_short_side(shorts: list[int], side: int) -> None:
    assert choose_side([header(600, short) for short in shorts], "auto") == side
    assert choose_side([header()], 57) == 57


@pytest.mark.parametrize(
    ("present", "channels"),
    [([1, 1], 1), ([1, 1, 1, 3], 3), ([5, 5, 3], 5), ([5, 3, 3, 1], 3), ([4, 4, 6], 4)],
)
def test_channels_are_the_most_frequent_kind(present: list[int], channels: int) -> None:
    assert choose_channels([header(channels=c) for c in present], "auto") == channels
    assert choose_channels([header()], 2) == 2


def test_depth_is_the_widest_present() -> None:
    kinds = ["uint8", "uint16", "float32"]
    for i, widest in enumerate(kinds):
        assert choose_dtype([header(dtype=kind) for kind in kinds[: i + 1]]) == widest


def test_depth_widens_over_the_same_range() -> None:
    array = np.array([[[0], [1], [255]]], np.uint8)
    assert conform(array, 1, 1, "uint16").flatten().tolist() == [0, 257, 65535]
    fractions = conform(array, 1, 1, "float32").flatten().tolist()
    assert fractions == pytest.approx([0, 1 / 255, 1])
    with pytest.raises(UnreadableImageError, match="float32 values"):
        conform(array.astype(np.float32), 1, 1, "uint8")


def test_grey_and_rgb_convert_and_stacks_do_not() -> None:
    grey = GENERATOR.integers(0, 256, (5, 7, 1), np.uint8)
    colour = conform(grey, 5, 3, "uint8")
    np.testing.assert_array_equal(colour, np.dstack([grey] * 3))
    np.testing.assert_array_equal(conform(colour, 5, 1, "uint8"), grey)
    red = np.zeros((5, 7, 3), np.uint8)
    red[..., 0] = 200
    assert (conform(red, 5, 1, "uint8") == 60).all()  # .299 · 200
    with pytest.raises(UnreadableImageError, match="has 3 channels where 4 are wanted"):
        conform(colour, 5, 4, "uint8")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_halving_is_antialiased_and_keeps_the_long_side(dtype: str) -> None:
    scale = 1 if dtype == "uint8" else 200
    array = (GENERATOR.integers(0, 256, (8, 20, 2)) * scale).astype(dtype)
    result = resize(array, 4)
    assert result.shape == (4, 10, 2)
    assert result.dtype == array.dtype
    tolerance = {"uint8": 1.01, "uint16": 0.51, "float32": 1e-3}[dtype]
    # The triangle filter at scale 2 weighs rows 1, 3, 3, 1 eighths away from the edges.
    weights = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    for row, column in ((1, 1), (2, 5)):
        window = array[2 * row - 1 : 2 * row + 3, 2 * column - 1 : 2 * column + 3].astype(float)
        expected = (window * weights[..., None]).sum(axis=(0, 1))
        np.testing.assert_allclose(result[row, column], expected, atol=tolerance)


def test_resize_to_the_same_side_changes_no_bit() -> None:
    array = GENERATOR.integers(0, 65536, (6, 11, 1), np.uint16)
    assert resize(array, 6) is array


def test_a_sliver_that_would_explode_is_unreadable() -> None:
    with pytest.raises(UnreadableImageError, match="more than"):
        resize(np.zeros((1, 10000, 1), np.uint8), 224)
