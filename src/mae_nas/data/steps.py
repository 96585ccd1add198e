"""The order of images: a pure function of the training step, so resuming needs no state."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mae_nas.data.gather import Extents, crop_boxes, gather_host
from mae_nas.data.splits import Split
from mae_nas.data.store import ImageStore
from mae_nas.randomness import Purpose, derive_key, permutation

_ORDERS_KEPT = 4  # an epoch of the weights, and two passes of the architecture's stream
LEVELS = (("weights", Purpose.WEIGHTS), ("arch", Purpose.ARCHITECTURE))


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
    """

    def __init__(
        self, split: Split, seed: int, batch_size: int, device: torch.device | str = "cpu"
    ) -> None:
        self.seed, self.batch_size = seed, batch_size
        self.device = torch.device(device)
        self.steps_per_epoch = len(split.weights) // batch_size
        self._halves = {
            Purpose.WEIGHTS: torch.from_numpy(split.weights).to(device),
            Purpose.ARCHITECTURE: torch.from_numpy(split.architecture).to(device),
        }
        self._orders: dict[tuple[Purpose, int], Tensor] = {}

    def index(self, purpose: Purpose, step: int) -> Tensor:
        """Positions in the store of the images of a step: (batch_size,), int64."""
        if purpose is Purpose.WEIGHTS:
            epoch, position = divmod(step, self.steps_per_epoch)
            start = position * self.batch_size
            return self._order(purpose, epoch)[start : start + self.batch_size]
        passes, start = divmod(step * self.batch_size, len(self._halves[purpose]))
        this = self._order(purpose, passes)[start : start + self.batch_size]
        if len(this) == self.batch_size:
            return this
        return torch.cat([this, self._order(purpose, passes + 1)[: self.batch_size - len(this)]])

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

    Args:
        steps_per_epoch: full batches of the weight half.
        current_step: asked when iteration starts, when a checkpoint's step is restored already.
    """

    def __init__(self, steps_per_epoch: int, current_step: Callable[[], int]) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.current_step = current_step

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[int]:
        start = self.current_step()
        return iter(range(start, (start // self.steps_per_epoch + 1) * self.steps_per_epoch))


class RawBatch(NamedTuple):
    """Windows as stored, neither mirrored nor normalised: what a worker can prepare.

    Shapes:
        windows: (B, S, S, C); positions: (B,), int64, in the store.
    """

    windows: Tensor
    positions: Tensor


class RawStep(NamedTuple):
    """Both batches of a step, from a worker."""

    step: int
    weights: RawBatch
    arch: RawBatch


class ResidentSteps(Dataset[int]):
    """Data that lives on the device: a worker has nothing to add to the number of the step."""

    def __getitem__(self, step: int) -> int:
        return step


class HostSteps(Dataset[RawStep]):
    """Data on the host: workers cut the windows. Picklable, so that workers may be spawned.

    Args:
        store: the images.
        order: on the CPU.
        crop_padding: in pixels.
    """

    def __init__(self, store: ImageStore, order: StepOrder, crop_padding: int) -> None:
        self.store, self.order, self.crop_padding = store, order, crop_padding
        self._extents = Extents.of(store, torch.device("cpu"))

    def __getitem__(self, step: int) -> RawStep:
        weights, arch = (self.cut(purpose, step) for _, purpose in LEVELS)
        return RawStep(step, weights, arch)

    def cut(self, purpose: Purpose, step: int) -> RawBatch:
        """One level's windows, where its key says."""
        index = self.order.index(purpose, step)
        key = derive_key(self.order.seed, purpose, step)
        side, extents = self.store.side, self._extents.at(index)
        boxes = crop_boxes(key, index, extents, side, self.crop_padding)
        return RawBatch(gather_host(self.store, index, boxes), index)
