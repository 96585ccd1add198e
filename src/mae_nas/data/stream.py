"""Images as a trained network was shown them, once and in order, for its features or its scores."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from mae_nas.batch import Batch
from mae_nas.data.gather import Cutter
from mae_nas.data.splits import Split
from mae_nas.data.steps import TRAINING, BatchMaker, StepOrder
from mae_nas.data.store import ImageStore

MOST = 1 << 12  # pixels a side, channels: of what a file may claim


@dataclass(frozen=True)
class Preprocessing:
    """What a network was trained on, a part of its checkpoint.

    Args:
        side: of the images, pixels.
        channels: of the images.
        dtype: as stored: uint8, int16 or float32.
        mean, std: of each channel, in units of the original files.
    """

    side: int
    channels: int
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, store: ImageStore) -> Self:
        """What a network that is trained on these images is shown."""
        moments = store.moments
        values = (tuple(moments.mean.tolist()), tuple(moments.std.tolist()))
        return cls(store.side, store.channels, store.pixels.dtype.name, *values)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`; ValueError in one line of any other text."""
        try:
            facts = json.loads(text)
            sizes = [int(facts[key]) for key in ("side", "channels")]
            moments = [tuple(map(float, facts[key])) for key in ("mean", "std")]
            if not all(0 < size <= MOST for size in sizes):
                raise ValueError("a size out of range")
            if {len(values) for values in moments} != {sizes[1]}:
                raise ValueError("other numbers of means than of channels")
            if not all(map(math.isfinite, (*moments[0], *moments[1]))) or min(moments[1]) <= 0:
                raise ValueError("a mean that is not finite, or a deviation not above 0")
            return cls(sizes[0], sizes[1], str(facts["dtype"]), moments[0], moments[1])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not how images were prepared ({error})") from None

    def apply(self, store: ImageStore) -> ImageStore:
        """The images, to be normalised as then; ValueError if they are of another kind."""
        found = Preprocessing.of(store)
        for name in ("side", "channels", "dtype"):
            mine, theirs = getattr(self, name), getattr(found, name)
            if mine != theirs:
                raise ValueError(f"data: its images have {name} {theirs}, the network's {mine}")
        mean, std = np.array(self.mean), np.array(self.std)
        return replace(store, moments=replace(store.moments, mean=mean, std=std))


def stream(
    store: ImageStore,
    positions: NDArray[np.int64],
    batch_size: int,
    device: torch.device,
    first: int = 0,
) -> Iterator[Batch]:
    """Centre windows of the images at `positions`, in batches of `batch_size`, the last one less.

    Which images share a batch depends on nothing else, so that features are the same bits wherever
    they are computed.

    Args:
        store: see `Preprocessing.apply`.
        positions: (N,), in the order wanted.
        batch_size: images.
        device: of the batches.
        first: batch to begin with.
    """
    none = positions[:0]
    order = StepOrder(Split(positions, none, none), 0, batch_size, device)
    maker = BatchMaker(Cutter(store, 0, None), order, torch.float32, flip=False, levels=TRAINING)
    for start in range(first * batch_size, len(positions), batch_size):
        yield maker.held_out(positions[start : start + batch_size])
