import math

import pytest
import torch
from torch import Tensor

from mae_nas.masking import sample_hidden
from mae_nas.randomness import Purpose, derive_key, fold, integers_below, permutation

WORD = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15


def unmix(word: int) -> int:
    """The inverse of SplitMix64's finaliser: the published stream can be seen through it."""
    word = _unshift(word % WORD, 31) * pow(0x94D049BB133111EB, -1, WORD) % WORD
    word = _unshift(word, 27) * pow(0xBF58476D1CE4E5B9, -1, WORD) % WORD
    return _unshift(word, 30)


def _unshift(word: int, by: int) -> int:
    out = word
    for _ in range(64 // by):
        out = word ^ (out >> by)
    return out


def bits(words: Tensor) -> Tensor:
    return (words[:, None] >> torch.arange(64)) & 1


# The first outputs of java.util.SplittableRandom's generator, as published with SplitMix64 ports.
KNOWN = {
    0: (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC),
    1234567: (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431),
}


@pytest.mark.parametrize("seed", KNOWN)
def test_fold_contains_the_published_splitmix64_stream(seed: int) -> None:
    for position, expected in enumerate(KNOWN[seed]):
        value = seed + position * GOLDEN
        assert unmix(fold(0, value)) == expected
        key = derive_key(3, position)
        assert unmix(fold(key, value)) ^ (key % WORD) == expected


def test_fold_of_tensors_equals_fold_of_integers() -> None:
    edge = [0, 1, -1, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63), 123456789012345678]
    values = torch.tensor(edge)
    expected = [[fold(key, value) for value in edge] for key in edge]
    assert fold(values[:, None], values[None]).tolist() == expected
    for i, key in enumerate(edge):
        assert fold(key, values).tolist() == expected[i]
        assert fold(values, key).tolist() == [row[i] for row in expected]
    assert all(-(2**63) <= word < 2**63 for row in expected for word in row)


def test_hash_is_pinned_for_good() -> None:
    # A change of any of these changes every run: masks, splits, crops and flips.
    pinned = {
        "SPLIT": 1,
        "WEIGHTS": 2,
        "ARCHITECTURE": 3,
        "HELD_OUT": 4,
        "MASK": 5,
        "CROP_TOP": 6,
        "CROP_LEFT": 7,
        "FLIP": 8,
        "CHANCE": 9,
    }
    assert pinned.items() <= {p.name: int(p) for p in Purpose}.items()
    assert len({int(p) for p in Purpose}) == len(Purpose.__members__)
    assert derive_key(0, Purpose.WEIGHTS, 0) == 3736364503711333621
    assert permutation(12, derive_key(7, Purpose.SPLIT)).tolist() == [
        1,
        11,
        4,
        0,
        3,
        9,
        5,
        7,
        6,
        10,
        2,
        8,
    ]
    hidden = sample_hidden(derive_key(1, Purpose.HELD_OUT), torch.tensor([0, 9]), (3, 4), 5)
    assert hidden.flatten(1).int().tolist() == [
        [1, 0, 1, 0, 1, 0, 1, 1, 0, 0, 0, 0],
        [0, 1, 0, 1, 1, 1, 0, 0, 0, 0, 1, 0],
    ]


def test_derive_key_depends_on_order_length_and_every_part() -> None:
    parts = [(), (0,), (0, 0), (1, 2), (2, 1), (1, 2, 0), (1, 2, 3), (-1,), (2**32, 1)]
    assert len({derive_key(*p) for p in parts}) == len(parts)
    assert derive_key(5, Purpose.MASK, 3) == fold(fold(fold(0, 5), 5), 3)


def test_every_bit_is_fair_and_any_flipped_bit_flips_half_of_them() -> None:
    count = 4096
    words = fold(derive_key(3), torch.arange(count))
    sigma = 0.5 / math.sqrt(count)
    assert (bits(words).double().mean(0) - 0.5).abs().max() < 4.5 * sigma
    for bit in (0, 17, 62):
        flipped = fold(derive_key(3), torch.arange(count) ^ (1 << bit))
        assert (bits(words ^ flipped).double().mean(0) - 0.5).abs().max() < 4.5 * sigma


def test_purposes_and_steps_give_independent_draws() -> None:
    count, index = 4096, torch.arange(4096)
    keys = [derive_key(0, purpose, step) for purpose in Purpose for step in (0, 1)]
    signs = torch.stack([2.0 * bits(fold(key, index)).double() - 1 for key in keys])
    flat = signs.flatten(1)
    correlation = (flat @ flat.T / flat.shape[1]).fill_diagonal_(0.0)
    assert correlation.abs().max() < 5 / math.sqrt(count * 64)


def test_permutation_holds_each_number_once_and_puts_each_anywhere() -> None:
    length, draws = 7, 2000
    drawn = torch.stack([permutation(length, derive_key(k)) for k in range(draws)])
    assert torch.equal(drawn.sort(1).values, torch.arange(length).expand(draws, length))
    assert drawn.dtype == torch.int64
    frequency = torch.stack([(drawn == value).double().mean(0) for value in range(length)])
    sigma = math.sqrt((1 / length) * (1 - 1 / length) / draws)
    assert (frequency - 1 / length).abs().max() < 4.5 * sigma
    assert permutation(0, 1).tolist() == []


def test_integers_below_are_in_range_and_uniform() -> None:
    keys = fold(derive_key(8), torch.arange(6000))
    assert (keys < 0).any()
    drawn = integers_below(9, keys)
    counts = drawn.bincount(minlength=9)
    assert len(counts) == 9
    assert drawn.min() >= 0
    chi_square = ((counts - 6000 / 9) ** 2 / (6000 / 9)).sum()
    assert chi_square < 26.1  # 8 degrees of freedom, 1 in 1,000
    bounds = torch.tensor([1, 2, 5])
    each = integers_below(bounds, keys[:2000, None])
    assert [each[:, i].unique().tolist() for i in range(3)] == [[0], [0, 1], [0, 1, 2, 3, 4]]


def test_draws_neither_read_nor_move_the_global_generator() -> None:
    before = torch.get_rng_state()
    first = permutation(50, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(permutation(50, 3), first)
