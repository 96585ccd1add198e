import numpy as np
import pytest
import torch

from mae_nas.data.gather import (
    Boxes,
    Extents,
    Normalisation,
    centre_boxes,
    crop_boxes,
    gather_host,
    gather_resident,
    mirror,
    sample_flips,
)
from mae_nas.data.loading import store_of_arrays
from mae_nas.data.store import ImageStore, Moments

CPU = torch.device("cpu")
SIDE = 5


def ragged_store(dtype: str, channels: int = 2) -> ImageStore:
    generator = np.random.default_rng(5)
    sizes = [(5, 9), (7, 5), (6, 6), (5, 5)]
    images = [(generator.random((*size, channels)) * 250 + 1).astype(dtype) for size in sizes]
    return store_of_arrays(images, [f"{i}" for i in range(4)], SIDE)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_both_gathers_equal_slices_of_zero_padded_images(dtype: str) -> None:
    store = ragged_store(dtype)
    index = torch.tensor([2, 0, 3, 1, 2, 0])
    extents = Extents.of(store, CPU).at(index)
    boxes = crop_boxes(11, index, extents, SIDE, padding=3)
    host = gather_host(store, index, boxes)
    pixels = torch.from_numpy(store.pixels)
    resident = gather_resident(pixels, extents, boxes, SIDE, store.black)
    assert torch.equal(host, resident)
    assert host.dtype == pixels.dtype
    for window, i, top, left in zip(host, index, boxes.top + 3, boxes.left + 3, strict=True):
        start, shape = store.offset[i], (int(store.height[i]), int(store.width[i]), 2)
        original = store.pixels[start : start + shape[0] * shape[1]].reshape(shape)
        padded = np.pad(original.astype(float) + store.shift, ((3, 3), (3, 3), (0, 0)))
        expected = padded[top : top + SIDE, left : left + SIDE]
        np.testing.assert_array_equal(window.numpy().astype(float) + store.shift, expected)


def test_crops_cover_all_windows_and_depend_on_key_and_index_alone() -> None:
    index = torch.arange(4000)
    extents = Extents(index * 0, torch.full_like(index, 6), torch.full_like(index, 8))
    boxes = crop_boxes(7, index, extents, SIDE, padding=1)
    assert boxes.top.unique().tolist() == [-1, 0, 1, 2]
    assert boxes.left.unique().tolist() == [-1, 0, 1, 2, 3, 4]
    counts = torch.bincount((boxes.top + 1) * 6 + boxes.left + 1, minlength=24)
    assert counts.min() > 110  # of 167 expected: rows and columns are independent
    some = index[[5, 3999, 17]]
    again = crop_boxes(7, some, Extents(*(x[some] for x in extents)), SIDE, padding=1)
    assert torch.equal(again.top, boxes.top[some])
    assert torch.equal(again.left, boxes.left[some])
    assert not torch.equal(crop_boxes(8, index, extents, SIDE, 1).top, boxes.top)


def test_without_room_there_is_one_crop_and_it_is_the_centre() -> None:
    index = torch.arange(3)
    extents = Extents(index, torch.full_like(index, 5), torch.tensor([5, 8, 9]))
    assert crop_boxes(1, index, extents, SIDE, padding=0).top.tolist() == [0, 0, 0]
    centre = centre_boxes(extents, SIDE)
    assert centre.top.tolist() == [0, 0, 0]
    assert centre.left.tolist() == [0, 1, 2]


def test_flips_are_half_and_mirror_columns() -> None:
    flips = sample_flips(3, torch.arange(4000))
    assert 0.47 < flips.double().mean() < 0.53
    windows = torch.arange(2 * 3 * 3 * 2).view(2, 3, 3, 2)
    mirrored = mirror(windows, torch.tensor([True, False]))
    assert torch.equal(mirrored[0], windows[0, :, [2, 1, 0]])
    assert torch.equal(mirrored[1], windows[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalised_store_has_mean_zero_and_deviation_one(dtype: torch.dtype) -> None:
    for kind in ("uint8", "uint16", "float32"):
        store = ragged_store(kind, channels=3)
        normalisation = Normalisation.of(store, CPU, dtype)
        stored = torch.from_numpy(store.pixels)
        image = normalisation.apply(stored.view(1, 1, -1, 3))
        assert image.dtype == dtype
        assert image.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(
            image.mean((0, 2, 3)), torch.zeros(3, dtype=dtype), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(image.std((0, 2, 3), correction=0), torch.ones(3, dtype=dtype))
        original = stored.to(dtype) + store.shift
        torch.testing.assert_close(normalisation.invert(image)[0, :, 0].T, original)


def test_constant_channel_normalises_to_zero() -> None:
    moments = Moments.of(np.full((7, 1), 9, np.uint8))
    assert (moments.mean.item(), moments.std.item()) == (9, 1)


def test_moments_survive_a_large_mean() -> None:
    pixels = (np.random.default_rng(6).normal(size=(1000, 2)) + 1e5).astype(np.float32)
    expected = pixels.astype(np.float64).std(axis=0)
    np.testing.assert_allclose(Moments.of(pixels).std, expected, rtol=1e-9)


def test_window_that_misses_its_image_is_black() -> None:
    store = ragged_store("uint16")
    boxes = Boxes(torch.tensor([-5]), torch.tensor([-5]))
    assert (gather_host(store, torch.tensor([0]), boxes) == -32768).all()
