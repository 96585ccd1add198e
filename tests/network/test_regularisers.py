import numpy as np
import pytest
import torch
from torch import Tensor

from mae_nas.batch import Batch
from mae_nas.network.regularisers import cutout, keep_paths, mix
from mae_nas.randomness import Purpose, derive_key

KEY = derive_key(7, Purpose.WEIGHTS, 3)


def batch(images: int = 5, side: int = 9, first: int = 0) -> Batch:
    image = torch.randn(images, 2, side, side)
    return Batch(image, torch.arange(first, first + images), KEY, torch.arange(images) % 3)


def hole(before: Tensor, after: Tensor) -> tuple[slice, slice]:
    changed = (before != after).any(0)
    rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def test_cutout_blanks_one_square_that_may_leave_the_image() -> None:
    given = batch(400)
    cut = cutout(given, 4)
    sides = set()
    for before, after in zip(given.image, cut, strict=True):
        rows, columns = hole(before, after)
        wanted = before.clone()
        wanted[:, rows, columns] = 0
        assert torch.equal(after, wanted)
        sides.add((rows.stop - rows.start, columns.stop - columns.start))
    # A centre is anywhere: of 4 pixels, 2 to 4 remain in a direction.
    assert sides == {(a, b) for a in (2, 3, 4) for b in (2, 3, 4)}


def test_draws_depend_on_key_and_image_alone() -> None:
    whole, part = batch(6), batch(2, first=4)
    part = part._replace(image=whole.image[4:])
    assert torch.equal(cutout(whole, 3)[4:], cutout(part, 3))
    kept, of_part = keep_paths(whole, 7, 0.4), keep_paths(part, 7, 0.4)
    assert kept is not None
    assert of_part is not None
    assert torch.equal(kept[:, 4:], of_part)
    other = whole._replace(key=KEY + 1)
    assert not torch.equal(cutout(whole, 3), cutout(other, 3))


def test_paths_are_kept_with_their_probability_and_scaled_to_their_mean() -> None:
    kept = keep_paths(batch(500, 1), 40, 0.3)
    assert kept is not None
    assert kept.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    # 20,000 draws: the mean of 1 has a standard error of 0.0046.
    assert abs(float(kept.mean()) - 1) < 0.02
    assert 0.2 < float((kept.mean(0) - 1).std() * 40**0.5) / (0.3 / 0.7) ** 0.5 < 2  # apart
    assert keep_paths(batch(), 4, 0.0) is None


def test_nothing_is_mixed_where_nothing_is_wanted() -> None:
    given = batch()
    mixed = mix(given, 0.0, 0.0)
    assert mixed.image is given.image
    assert mixed.share == 1


def test_mixup_is_a_weighted_mean_of_neighbours() -> None:
    given = batch()
    mixed = mix(given, 0.8, 0.0)
    assert 0 < mixed.share < 1
    for i in range(5):
        wanted = mixed.share * given.image[i] + (1 - mixed.share) * given.image[i - 1]
        torch.testing.assert_close(mixed.image[i], wanted)
    assert given.label is not None
    assert mixed.second.tolist() == [given.label[i - 1] for i in range(5)]


def test_cutmix_pastes_a_rectangle_of_the_share_that_it_says() -> None:
    shares = []
    for key in range(40):
        given = batch(4, 16)._replace(key=key)
        mixed = mix(given, 0.0, 1.0)
        changed = (mixed.image != given.image).any(1)
        assert torch.equal(changed[0], changed[1])
        share = float(changed[0].float().mean())
        assert mixed.share == pytest.approx(1 - share)
        shares.append(share)
        i = int(key % 4)
        wanted = torch.where(changed[i], given.image[i - 1], given.image[i])
        assert torch.equal(mixed.image[i], wanted)
    assert np.std(shares) > 0.1
