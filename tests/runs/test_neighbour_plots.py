from pathlib import Path

import numpy as np
import pytest

from mae_nas.data import ImageStore, Synthetic, store_of_arrays
from mae_nas.runs.neighbour_plots import nearest, plot_neighbours, shown

FEATURES = np.random.default_rng(2).standard_normal((23, 5)).astype(np.float32) + 3


def test_the_nearest_are_those_of_the_largest_cosine() -> None:
    centred = FEATURES.astype(float) - FEATURES.astype(float).mean(0)
    found = nearest(FEATURES, [4, 0, 22], 6)
    for query, row in zip([4, 0, 22], found, strict=True):
        cosines = {
            other: float(
                centred[query]
                @ centred[other]
                / np.linalg.norm(centred[query])
                / np.linalg.norm(centred[other])
            )
            for other in range(23)
            if other != query
        }
        assert row.tolist() == sorted(cosines, key=lambda other: -cosines[other])[:6]


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = nearest(FEATURES, [1, 2], 22)
    monkeypatch.setattr("mae_nas.runs.neighbour_plots._BLOCK", 4)
    assert np.array_equal(nearest(FEATURES, [1, 2], 22), whole)


def test_features_that_are_all_alike_are_ranked_by_number() -> None:
    assert nearest(np.ones((5, 3), np.float32), [2], 3).tolist() == [[0, 1, 3]]


def test_a_window_is_the_middle_of_the_image_at_its_own_brightness() -> None:
    image = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    store = store_of_arrays([image, image], ["a", "b"], 8)
    np.testing.assert_allclose(shown(store, 1), image[:, 2:10] / 255)


@pytest.mark.parametrize("images", [2, 40])
def test_a_picture_is_drawn_of_few_and_of_many(tmp_path: Path, images: int) -> None:
    store: ImageStore = Synthetic(images=images, side=8).load()
    features = np.random.default_rng(0).standard_normal((images, 4)).astype(np.float32)
    assert plot_neighbours(features, store, tmp_path / "p.png") == [tmp_path / "p.png"]
    assert (tmp_path / "p.png").stat().st_size > 2000
