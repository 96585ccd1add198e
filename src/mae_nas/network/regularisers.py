"""What training does to images and paths so that a network does not learn them by heart.

All draws are pure functions of (key, index): see `randomness`.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mae_nas.batch import Batch
from mae_nas.randomness import Purpose, derive_key, fold, integers_below

_BITS = 24  # of a uniform number in float32


def uniform(keys: Tensor) -> Tensor:
    """Numbers in [0, 1) from keys (int64)."""
    return integers_below(1 << _BITS, keys).float() / (1 << _BITS)


def cutout(batch: Batch, length: int) -> Tensor:
    """Images with a square of `length` pixels set to 0, its centre anywhere (Cutout, Sec. 3).

    What leaves the image is cut, as in DARTS.

    Shapes:
        -> (B, C, S, S).
    """
    side = batch.image.shape[-1]
    keys = fold(batch.key, batch.index)
    span = torch.arange(side, device=batch.image.device)

    def covered(purpose: Purpose) -> Tensor:
        start = integers_below(side, fold(keys, purpose))[:, None] - length // 2
        return (span >= start) & (span < start + length)

    rows, columns = covered(Purpose.CUTOUT_ROW), covered(Purpose.CUTOUT_COLUMN)
    hole = rows[:, None, :, None] & columns[:, None, None, :]
    return batch.image.masked_fill(hole, 0.0)


def keep_paths(batch: Batch, paths: int, probability: float) -> Tensor | None:
    """What each edge's output is multiplied by for each image: 0, or 1 / (1 − probability).

    One draw for all paths of the network (DARTS's scheduled drop path).

    Shapes:
        -> (paths, B); None: nothing is dropped.
    """
    if probability == 0:
        return None
    keys = fold(fold(batch.key, batch.index), Purpose.DROP_PATH)
    numbers = torch.arange(paths, device=keys.device)
    kept = uniform(fold(keys[None], numbers[:, None])) >= probability
    return kept.to(batch.image.dtype) / (1 - probability)


class Mixed(NamedTuple):
    """Images, each made of two, their labels, and the share of the first."""

    image: Tensor
    first: Tensor
    second: Tensor
    share: float


def mix(batch: Batch, mixup: float, cutmix: float) -> Mixed:
    """Mixup (Sec. 2) or CutMix (Sec. 3.1), of each image with its neighbour in the micro-batch.

    One share λ ~ Beta(a, a) for all; where both are wanted, either is as likely.

    Args:
        batch: with labels.
        mixup: a, 0 for none.
        cutmix: a, 0 for none.
    """
    image, label = batch.image, batch.label
    assert label is not None
    if not mixup and not cutmix:
        return Mixed(image, label, label, 1.0)
    generator = np.random.default_rng(derive_key(batch.key, Purpose.MIX) % 2**63)
    is_cut = bool(cutmix) and (not mixup or generator.random() < 0.5)
    alpha = cutmix if is_cut else mixup
    share = float(generator.beta(alpha, alpha))
    other = image.roll(1, 0)
    if not is_cut:
        return Mixed(share * image + (1 - share) * other, label, label.roll(1), share)
    side = image.shape[-1]
    length = round(side * (1 - share) ** 0.5)
    top, left = generator.integers(side, size=2) - length // 2
    rows = slice(max(top, 0), max(top + length, 0))
    columns = slice(max(left, 0), max(left + length, 0))
    mixed = image.clone()
    mixed[:, :, rows, columns] = other[:, :, rows, columns]
    area = mixed[0, 0, rows, columns].numel() / side**2
    return Mixed(mixed, label, label.roll(1), 1 - area)
