"""The value that travels from the data to the loss."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Images of one (micro-)batch, on the device, with all that randomness may depend on.

    Shapes:
        image: (B, C, S, S), normalised by the data set's mean and standard deviation.
        index: (B,), int64, position in the data set.
        label: (B,), int64, or None; search never reads it.

    `key` is `derive_key(seed, purpose, step)`: what lies below the training step draws from
    (key, index) and never asks which of the two bilevel steps it serves.
    """

    image: Tensor
    index: Tensor
    key: int
    label: Tensor | None = None
