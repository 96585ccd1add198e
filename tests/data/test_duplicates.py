from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mae_nas.data import Folder, ImageStore, store_of_arrays
from mae_nas.data.duplicates import near_duplicates


def scene(generator: np.random.Generator, side: int = 120) -> NDArray[np.float32]:
    """A texture with detail at every scale: (side, side, 3), 0 to 255."""
    total = np.zeros((side, side, 3), np.float32)
    for cells in (3, 6, 12, 24):
        for channel in range(3):
            noise = Image.fromarray(generator.normal(size=(cells, cells)).astype(np.float32))
            total[..., channel] += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC))
    return np.clip(128 + 40 * total, 0, 255)


def frames(generator: np.random.Generator, count: int, side: int = 64) -> list[NDArray[np.uint8]]:
    """A camera that moves by a pixel a frame, while the light and the sensor's noise change."""
    whole = scene(generator)
    made = []
    for i in range(count):
        window = whole[20 : 20 + side, 20 + i : 20 + i + side] * (1 + 0.05 * np.sin(i))
        noisy = window + generator.normal(0, 2, window.shape)
        made.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return made


def store_of(images: list[NDArray[np.uint8]]) -> ImageStore:
    return store_of_arrays(images, [f"{i}" for i in range(len(images))], min(images[0].shape[:2]))


def pairs_of(store: ImageStore) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for a, b in near_duplicates(store, lambda _done, _total: None)}


def test_frames_of_a_scene_are_found_and_no_others() -> None:
    generator = np.random.default_rng(0)
    images = [frame for _ in range(60) for frame in frames(generator, 5)]
    shuffled = generator.permutation(len(images)).tolist()
    found = pairs_of(store_of([images[i] for i in shuffled]))
    scenes = [{shuffled[a] // 5, shuffled[b] // 5} for a, b in found]
    assert all(len(both) == 1 for both in scenes)
    met = {frozenset((shuffled[a], shuffled[b])) for a, b in found}
    neighbours = {frozenset((i, i + 1)) for i in range(len(images) - 1) if i % 5 < 4}
    assert len(neighbours & met) >= 0.98 * len(neighbours)


def test_pairs_are_those_of_a_comparison_of_all_with_all() -> None:
    generator = np.random.default_rng(1)
    images = [frame[::2, ::2] for _ in range(6) for frame in frames(generator, 5)]
    bits, greys = [], []
    for image in images:
        grey = image.astype(float).mean(axis=2).reshape(16, 2, 16, 2).mean(axis=(1, 3))
        cells = [
            [grey[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean() for c in range(8)] for r in range(8)
        ]
        across = [cells[r][c + 1] > cells[r][c] for r in range(8) for c in range(7)]
        bits.append(across + [cells[r + 1][c] > cells[r][c] for r in range(7) for c in range(8)])
        greys.append(grey.flatten())
    expected = {
        (a, b)
        for a, b in combinations(range(len(images)), 2)
        if sum(x != y for x, y in zip(bits[a], bits[b], strict=True)) <= 14
        and np.corrcoef(greys[a], greys[b])[0, 1] >= 0.9
    }
    assert len(expected) > 20
    assert pairs_of(store_of(images)) == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_one_colour_and_exact_duplicates_are_near_duplicates_of_none(dtype: type) -> None:
    plain = [np.full((37, 41, 3), value / 7, dtype) for value in range(7, 207, 2)]
    picture = scene(np.random.default_rng(2), 40)[:37].astype(dtype)
    assert pairs_of(store_of([*plain, picture, picture])) == set()
    brighter = (picture * 0.8).astype(dtype)
    assert pairs_of(store_of([picture, *plain, brighter])) == {(0, len(plain) + 1)}


@pytest.mark.slow
def test_photographs_of_different_things_are_not_reported(data_root: Path) -> None:
    folder = data_root / "imagenet-sample"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    assert pairs_of(Folder(root=str(folder)).load()) == set()
