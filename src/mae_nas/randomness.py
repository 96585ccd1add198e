"""Stateless randomness: every draw is a pure function of integers (seed, purpose, step, index).

Masks, crops, flips and permutations never touch a generator, so there is nothing to save in a
checkpoint, and they are equal under any number of workers, ranks and micro-batches and on any
device. The function is the finaliser of SplitMix64 (Steele et al., OOPSLA 2014), folded over the
integers; all arithmetic is modulo 2^64, held in signed 64-bit integers.
"""

from enum import IntEnum
from typing import overload

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_WORD = (1 << 64) - 1


class Purpose(IntEnum):
    """What a draw is for. Values are part of every run's results: add new ones, never renumber."""

    SPLIT = 1
    WEIGHTS = 2
    ARCHITECTURE = 3
    HELD_OUT = 4
    MASK = 5
    CROP_TOP = 6
    CROP_LEFT = 7
    FLIP = 8
    CHANCE = 9
    GENOTYPE = 10
    CUTOUT_ROW = 11
    CUTOUT_COLUMN = 12
    DROP_PATH = 13
    MIX = 14
    TEST_SPLIT = 15
    AUGMENT = 16
    LABELLED = 17
    FOLD = 18


def _signed(word: int) -> int:
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word


def _scramble(word: int) -> int:
    word &= _WORD
    word = (word ^ (word >> 30)) * _FIRST & _WORD
    word = (word ^ (word >> 27)) * _SECOND & _WORD
    return word ^ (word >> 31)


def _scramble_tensor(words: Tensor) -> Tensor:
    # int64 products wrap modulo 2^64; the masks turn arithmetic shifts into logical ones.
    words = (words ^ ((words >> 30) & ((1 << 34) - 1))) * _signed(_FIRST)
    words = (words ^ ((words >> 27) & ((1 << 37) - 1))) * _signed(_SECOND)
    return words ^ ((words >> 31) & ((1 << 33) - 1))


@overload
def fold(key: int, value: int) -> int: ...
@overload
def fold(key: int | Tensor, value: Tensor) -> Tensor: ...
@overload
def fold(key: Tensor, value: int) -> Tensor: ...
def fold(key: int | Tensor, value: int | Tensor) -> int | Tensor:
    """Mix `value` into `key`; tensors (int64) broadcast, and give what the integers would give."""
    if isinstance(value, Tensor):
        inner: int | Tensor = _scramble_tensor(value + _signed(_GOLDEN))
    else:
        inner = _signed(_scramble(value + _GOLDEN))
    if isinstance(key, Tensor) or isinstance(inner, Tensor):
        return _scramble_tensor(torch.bitwise_xor(key, inner))  # type: ignore[arg-type]
    return _signed(_scramble(key ^ inner))


def derive_key(*parts: int) -> int:
    """Fold integers into one 64-bit key, e.g. `derive_key(seed, Purpose.WEIGHTS, step)`."""
    key = 0
    for part in parts:
        key = fold(key, int(part))
    return key


def permutation(length: int, key: int, device: torch.device | str = "cpu") -> Tensor:
    """A permutation of 0 … length-1 drawn from `key`: int64, (length,), equal on every device."""
    return torch.argsort(fold(key, torch.arange(length, device=device)), stable=True)


def integers_below(bound: int | Tensor, keys: Tensor) -> Tensor:
    """An integer in [0, bound) for each key (int64); `bound` is positive and may be a tensor."""
    return torch.remainder(keys, bound)
