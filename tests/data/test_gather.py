import numpy as np
import pytest
import torch

from mae_nas.data.gather import Cutter, Normalisation, mirror_half, random_corners
from mae_nas.data.loading import store_of_arrays
from mae_nas.data.store import ImageStore, Moments, shift_of

CPU = torch.device("cpu")
SIDE = 5


def ragged_store(dtype: str, channels: int = 2) -> ImageStore:
    generator = np.random.default_rng(5)
    sizes = [(5, 9), (7, 5), (6, 6), (5, 5)]
    images = [(generator.random((*size, channels)) * 250 + 1).astype(dtype) for size in sizes]
    return store_of_arrays(images, [f"{i}" for i in range(4)], SIDE)


@pytest.mark.parametrize("padding", [3, 12])  # windows of 12 may miss their image
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_both_gathers_equal_slices_of_zero_padded_images(dtype: str, padding: int) -> None:
    store = ragged_store(dtype)
    shift = shift_of(store.pixels)
    index = torch.tensor([2, 0, 3, 1, 2, 0])
    host, resident = (Cutter(store, padding, device).cut(index, 11) for device in (None, CPU))
    assert torch.equal(host, resident)
    assert host.numpy().dtype == store.pixels.dtype
    corners = random_corners(11, index, torch.from_numpy(store.sizes)[index], SIDE, padding)
    for window, i, (top, left) in zip(host, index.tolist(), corners + padding, strict=True):
        original = store[i].astype(float) + shift
        padded = np.pad(original, ((padding, padding), (padding, padding), (0, 0)))
        expected = padded[top : top + SIDE, left : left + SIDE]
        np.testing.assert_array_equal(window.numpy().astype(float) + shift, expected)
    assert (host == -shift).flatten(1).all(1).any() == (padding > SIDE)  # black windows


def test_crops_cover_all_windows_and_depend_on_key_and_index_alone() -> None:
    index = torch.arange(4000)
    sizes = torch.tensor([[6, 8]]).expand(4000, 2)
    corners = random_corners(7, index, sizes, SIDE, padding=1)
    top, left = corners.unbind(1)
    assert top.unique().tolist() == [-1, 0, 1, 2]
    assert left.unique().tolist() == [-1, 0, 1, 2, 3, 4]
    counts = torch.bincount((top + 1) * 6 + left + 1, minlength=24)
    assert counts.min() > 110  # of 167 expected: rows and columns are independent
    some = index[[5, 3999, 17]]
    assert torch.equal(random_corners(7, some, sizes[some], SIDE, padding=1), corners[some])
    assert not torch.equal(random_corners(8, index, sizes, SIDE, padding=1)[:, 0], top)


def test_without_room_there_is_one_crop_and_it_is_the_centre() -> None:
    index = torch.arange(4)
    store = ragged_store("uint8")
    sizes = torch.from_numpy(store.sizes)
    corners = random_corners(1, index, sizes, SIDE, padding=0)
    assert (corners[sizes == SIDE] == 0).all()
    for resident in (CPU, None):
        windows = Cutter(store, 0, resident).cut(index, None)
        for i, (top, left) in enumerate([(0, 2), (1, 0), (0, 0), (0, 0)]):
            expected = store[i][top : top + SIDE, left : left + SIDE]
            np.testing.assert_array_equal(windows[i], expected)


def test_flips_are_half_and_mirror_columns() -> None:
    windows = torch.arange(4000 * 3 * 3 * 2).view(4000, 3, 3, 2)
    mirrored = mirror_half(windows, 3, torch.arange(4000))
    flips = (mirrored != windows).flatten(1).any(1)
    assert 0.47 < flips.double().mean() < 0.53
    assert torch.equal(mirrored[flips], windows[flips][:, :, [2, 1, 0]])
    again = mirror_half(windows[[9, 70]], 3, torch.tensor([9, 70]))
    assert torch.equal(again, mirrored[[9, 70]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalised_store_has_mean_zero_and_deviation_one(dtype: torch.dtype) -> None:
    for kind in ("uint8", "uint16", "float32"):
        store = ragged_store(kind, channels=3)
        normalisation = Normalisation(store, CPU, dtype)
        stored = torch.from_numpy(store.pixels)
        image = normalisation.apply(stored.view(1, 1, -1, 3))
        assert image.dtype == dtype
        assert image.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(
            image.mean((0, 2, 3)), torch.zeros(3, dtype=dtype), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(image.std((0, 2, 3), correction=0), torch.ones(3, dtype=dtype))
        original = stored.to(dtype) + shift_of(store.pixels)
        torch.testing.assert_close(normalisation.invert(image)[0, :, 0].T, original)


def test_constant_channel_normalises_to_zero() -> None:
    moments = Moments.of(np.full((7, 1), 9, np.uint8))
    assert (moments.mean.item(), moments.std.item()) == (9, 1)


def test_moments_survive_a_large_mean() -> None:
    pixels = (np.random.default_rng(6).normal(size=(1000, 2)) + 1e5).astype(np.float32)
    expected = pixels.astype(np.float64).std(axis=0)
    np.testing.assert_allclose(Moments.of(pixels).std, expected, rtol=1e-9)
