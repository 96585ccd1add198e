"""From a training step to its batches, a pure function of it, so resuming needs no state."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mae_nas.batch import Batch
from mae_nas.data.gather import Cutter, Normalisation, mirror_half
from mae_nas.data.splits import Split
from mae_nas.randomness import Purpose, derive_key, permutation

_ORDERS_KEPT = 4  # an epoch of the weights, and two passes of the architecture's stream
Levels = Sequence[tuple[str, Purpose]]
"""What a step takes batches for, by the name of the batches."""
TRAINING: Levels = (("weights", Purpose.WEIGHTS),)
BILEVEL: Levels = (*TRAINING, ("arch", Purpose.ARCHITECTURE))


class StepOrder:
    """Which images an optimisation step sees, on one device.

    The weights see a fresh permutation of their half each epoch, in full batches; the architecture
    sees an endless stream of permutations of its half, so that unequal halves neither truncate nor
    repeat in step.

    Args:
        split: the halves, each at least one batch long.
        seed: of the run.
        batch_size: images of a step on either level.
        device: where permutations live; slices of them are taken by plain integers.
        micro_batches: that every batch is cut into.
        share: which part of every micro-batch is this rank's, (rank, ranks); by value, since
            loader workers know no ranks.
    """

    def __init__(
        self,
        split: Split,
        seed: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        micro_batches: int = 1,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.seed, self.batch_size = seed, batch_size
        self.micro_batches, self.share = micro_batches, share
        self.device = torch.device(device)
        self._halves = {
            Purpose.WEIGHTS: torch.from_numpy(split.weights).to(device),
            Purpose.ARCHITECTURE: torch.from_numpy(split.architecture).to(device),
        }
        self._orders: dict[tuple[Purpose, int], Tensor] = {}

    def draw(self, purpose: Purpose, step: int) -> tuple[int, Tensor]:
        """The key of all that is random in one level of a step, and this rank's images of it."""
        rank, ranks = self.share
        index = self.index(purpose, step).view(self.micro_batches, ranks, -1)[:, rank]
        return derive_key(self.seed, purpose, step), index.flatten()

    def index(self, purpose: Purpose, step: int) -> Tensor:
        """Positions in the store of the images of a step, of all ranks: (batch_size,), int64."""
        length = len(self._halves[purpose])
        if purpose is Purpose.WEIGHTS:
            length -= length % self.batch_size
        passes, start = divmod(step * self.batch_size, length)
        index = self._order(purpose, passes)[start : start + self.batch_size]
        if missing := self.batch_size - len(index):
            return torch.cat([index, self._order(purpose, passes + 1)[:missing]])
        return index

    def _order(self, purpose: Purpose, number: int) -> Tensor:
        if (purpose, number) not in self._orders:
            while len(self._orders) >= _ORDERS_KEPT:
                del self._orders[next(iter(self._orders))]
            half = self._halves[purpose]
            key = derive_key(self.seed, purpose, number)
            self._orders[purpose, number] = half[permutation(len(half), key, self.device)]
        return self._orders[purpose, number]


class StepSampler(Sampler[int]):
    """Steps from the current one to the end of its epoch; its length is that of a whole epoch.

    The current one is asked for when iteration starts: a checkpoint's step is restored by then.
    """

    def __init__(self, steps_per_epoch: int, current_step: Callable[[], int]) -> None:
        self.steps_per_epoch, self.current_step = steps_per_epoch, current_step

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[int]:
        start = self.current_step()
        return iter(range(start, (start // self.steps_per_epoch + 1) * self.steps_per_epoch))


class RawStep(NamedTuple):
    """What a worker prepares of a step: windows as stored, (B, S, S, C), by level."""

    step: int
    windows: dict[str, Tensor]


class ResidentSteps(Dataset[int]):
    """Data that lives on the device: a worker has nothing to add to the number of the step."""

    def __getitem__(self, step: int) -> int:
        return step


class HostSteps(Dataset[RawStep]):
    """Data on the host: workers cut the windows. Picklable, so that workers may be spawned."""

    def __init__(self, cutter: Cutter, order: StepOrder, levels: Levels) -> None:
        self.cutter, self.order, self.levels = cutter, order, levels

    def __getitem__(self, step: int) -> RawStep:
        draws = [(name, *self.order.draw(purpose, step)) for name, purpose in self.levels]
        return RawStep(step, {name: self.cutter.cut(index, key) for name, key, index in draws})


class BatchMaker:
    """Cuts, mirrors and normalises the images of steps, all drawn from (seed, step, position).

    Args:
        cutter: of windows.
        order: which images a step sees; its device is that of the batches.
        dtype: of the images.
        flip: mirror half of the images.
        levels: of a step.
    """

    def __init__(
        self, cutter: Cutter, order: StepOrder, dtype: torch.dtype, flip: bool, levels: Levels
    ) -> None:
        self.cutter, self.order, self.flip, self.levels = cutter, order, flip, levels
        self.normalisation = Normalisation(cutter.store, order.device, dtype)
        labels = cutter.store.labels
        self.labels = None if labels is None else torch.from_numpy(labels).to(order.device)

    def step(self, item: int | RawStep) -> dict[str, list[Batch]]:
        """The batches of a step, each cut into equal micro-batches, without synchronisation."""
        step = item if isinstance(item, int) else item.step
        batches: dict[str, list[Batch]] = {}
        for name, purpose in self.levels:
            key, index = self.order.draw(purpose, step)
            windows = item.windows[name] if isinstance(item, RawStep) else self._cut(index, key)
            if self.flip:
                windows = mirror_half(windows, key, index)
            batch = self._batch(windows, index, key)
            batches[name] = _micro_batches(batch, self.order.micro_batches)
        return batches

    def held_out(self, positions: NDArray[np.int64]) -> Batch:
        """Images at some positions of the store: centre crop, no mirroring, one key for all."""
        index = torch.from_numpy(positions).to(self.order.device)
        key = derive_key(self.order.seed, Purpose.HELD_OUT)
        return self._batch(self._cut(index, None), index, key)

    def _cut(self, index: Tensor, key: int | None) -> Tensor:
        return self.cutter.cut(index, key).to(self.order.device)

    def _batch(self, windows: Tensor, index: Tensor, key: int) -> Batch:
        label = None if self.labels is None else self.labels[index]
        return Batch(self.normalisation.apply(windows), index, key, label)


def _micro_batches(batch: Batch, count: int) -> list[Batch]:
    labels = [None] * count if batch.label is None else batch.label.chunk(count)
    pieces = zip(batch.image.chunk(count), batch.index.chunk(count), labels, strict=True)
    return [Batch(image, index, batch.key, label) for image, index, label in pieces]
