"""The LightningDataModules: a store, its split, and the batches of every step."""

import atexit
import copy
import math
import multiprocessing
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mae_nas import ranks
from mae_nas.batch import Batch
from mae_nas.data.augment import Augmentation
from mae_nas.data.gather import Cutter
from mae_nas.data.source import ImageSource, Progress
from mae_nas.data.splits import Split, split_images
from mae_nas.data.steps import (
    BILEVEL,
    TRAINING,
    BatchMaker,
    HostSteps,
    Levels,
    RawStep,
    ResidentSteps,
    StepOrder,
    StepSampler,
)
from mae_nas.data.store import ImageStore
from mae_nas.stopping import SIGNALS

_RESIDENT_SHARE = 0.25  # of the device's memory
_MOST_WORKERS = 4


class StepData(LightningDataModule, ABC):
    """Batches of every step of a run.

    Every image of every step is a pure function of (seed, step): nothing is saved in a checkpoint,
    and workers, residence on the device and accumulation change no bit.

    Args:
        source: the data set.
        seed: of the run.
        batch_size: images of a step on each level, shared equally by all ranks.
        accumulate: equal micro-batches that a batch is cut into.
        workers: processes that cut windows; `auto` is none for resident data, else up to 4.
        resident: keep all images on the device; `auto` if they take at most 25 % of its memory.
    """

    levels: ClassVar[Levels]
    shares: ClassVar[Mapping[str, str]]
    """What images are for, by the name of their number in `describe`."""
    augmentation: Augmentation | None = None
    """Of training images, beyond windows and mirroring; set before they are loaded."""

    def __init__(
        self,
        source: ImageSource,
        seed: int,
        batch_size: int,
        accumulate: int = 1,
        workers: int | Literal["auto"] = "auto",
        resident: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        self.source, self.seed = source, seed
        self.batch_size, self.accumulate = batch_size, accumulate
        self.workers, self.resident = workers, resident
        self._device, self._dtype = torch.device("cpu"), torch.float32
        self._loaded: tuple[ImageStore, Split] | None = None
        self._makers: dict[tuple[torch.device, torch.dtype, int], BatchMaker] = {}

    @abstractmethod
    def divide(self, store: ImageStore) -> tuple[ImageStore, Split]:
        """The images, and which are for what; ValueError if they do not suffice."""

    def load(self, on_progress: Progress | None = None, store: ImageStore | None = None) -> None:
        """Decode or read the images, unless `store` holds them, and split them, once."""
        if self._loaded is None:
            store = store or self.source.load(on_progress)
            self._loaded = self.divide(store)

    def cut(self, batch_size: int, accumulate: int) -> Self:
        """The same images, loaded once for both, in other batches and in as many micro-batches."""
        other = copy.copy(self)
        other.batch_size, other.accumulate, other._makers = batch_size, accumulate, {}
        return other

    def prepare_data(self) -> None:
        """Fill the cache in one process before others read it."""
        self.load()

    def setup(self, stage: str = "fit") -> None:  # noqa: ARG002 - there is one stage
        self.load()

    @property
    def store(self) -> ImageStore:
        return self._loaded_or_raise()[0]

    @property
    def split(self) -> Split:
        return self._loaded_or_raise()[1]

    @property
    def channels(self) -> int:
        return self.store.channels

    @property
    def side(self) -> int:
        return self.store.side

    @property
    def steps_per_epoch(self) -> int:
        return len(self.split.weights) // self.batch_size

    @property
    def device(self) -> torch.device:
        """The trainer's device; without a trainer, the one of `use`."""
        return self.trainer.strategy.root_device if self.trainer else self._device

    def use(self, device: torch.device, dtype: torch.dtype) -> None:
        """Make batches there, of that type, where no trainer says otherwise."""
        self._device, self._dtype = device, dtype

    @property
    def dtype(self) -> torch.dtype:
        """Of the images: float64 under 64-true, else float32; without a trainer, that of `use`."""
        if self.trainer is None:
            return self._dtype
        return torch.float64 if self.trainer.precision == "64-true" else torch.float32

    @property
    def is_resident(self) -> bool:
        if isinstance(self.resident, bool):
            return self.resident
        if self.augmentation:  # which workers compute
            return False
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if self.device.type == "cuda":
            memory = torch.cuda.mem_get_info(self.device)[1]
        return self.store.pixels.nbytes <= _RESIDENT_SHARE * memory

    @property
    def worker_count(self) -> int:
        """Processes that cut windows."""
        automatic = 0 if self.is_resident else min(_MOST_WORKERS, os.cpu_count() or 1)
        return self.workers if isinstance(self.workers, int) else automatic

    def train_dataloader(self) -> DataLoader[int | RawStep]:
        """An item is one step; an epoch starts at the trainer's step, so resuming is exact."""
        is_resident = self.is_resident
        order = self._order(torch.device("cpu"))
        return DataLoader(
            ResidentSteps() if is_resident else HostSteps(self._cutter(), order, self.levels),
            batch_size=None,
            sampler=StepSampler(
                self.steps_per_epoch, lambda: self.trainer.global_step if self.trainer else 0
            ),
            num_workers=self.worker_count,
            worker_init_fn=_ignore_signals,
            pin_memory=self.device.type == "cuda" and not is_resident,
        )

    def on_after_batch_transfer(self, batch: int | RawStep, _index: int) -> dict[str, list[Batch]]:
        return self.step_batches(batch)

    def step_batches(self, item: int | RawStep) -> dict[str, list[Batch]]:
        """Micro-batches of a step, under `weights` and `arch`: a pure function of (seed, step)."""
        return self._maker.step(item)

    def held_out_batches(self) -> Iterator[Batch]:
        """This rank's held-out images once, in nearly equal batches."""
        parts = self._parts(self.split.held_out, ranks.size())[ranks.index() :: ranks.size()]
        return (self._maker.held_out(part) for part in parts if len(part))

    def preview(self, count: int) -> Iterator[Batch]:
        """The first held-out images, the same on every rank, in nearly equal batches."""
        return map(self._maker.held_out, self._parts(self.split.held_out[:count]))

    def denormalise(self, image: Tensor) -> Tensor:
        """A normalised image (B, C, S, S) as a picture in [0, 1]; 8 bits keep their full range."""
        low, high = self.store.moments.low, self.store.moments.high
        if self.store.pixels.dtype == np.uint8:
            low, high = 0.0, 255.0
        original = self._maker.normalisation.invert(image)
        return ((original - low) / (high - low or 1.0)).clamp(0, 1)

    def describe(self) -> dict[str, object]:
        """Facts for the summary of a run, in JSON's types."""
        store, split = self.store, self.split
        return {
            "images": len(store),
            "weights": len(split.weights),
            "architecture": len(split.architecture),
            "held_out": len(split.held_out),
            "side": store.side,
            "channels": store.channels,
            "mean": store.moments.mean.tolist(),
            "std": store.moments.std.tolist(),
            "dtype": store.pixels.dtype.name,
            "skipped_files": [{"file": name, "reason": reason} for name, reason in store.skipped],
            "cache": None if store.cache is None else str(store.cache),
            "resident": self.is_resident,
        }

    def _loaded_or_raise(self) -> tuple[ImageStore, Split]:
        if self._loaded is None:
            raise RuntimeError("the data are empty: call setup() first")
        return self._loaded

    def _parts(self, positions: NDArray[np.int64], fewest: int = 1) -> list[NDArray[np.int64]]:
        # No larger than micro-batches, which are known to fit in memory.
        size = self.batch_size // ranks.size() // self.accumulate
        # Nearly equal, for a lone last image would have no neighbour (the null arm needs one).
        return np.array_split(positions, max(fewest, math.ceil(len(positions) / size)))

    def _cutter(self) -> Cutter:
        resident = self.device if self.is_resident else None
        return Cutter(self.store, self.source.crop_padding, resident, self.augmentation)

    @property
    def _maker(self) -> BatchMaker:
        where = self.device, self.dtype, ranks.size()
        if where not in self._makers:
            order = self._order(self.device)
            self._makers[where] = BatchMaker(
                self._cutter(), order, self.dtype, self.source.flip, self.levels
            )
        return self._makers[where]

    def _order(self, device: torch.device) -> StepOrder:
        share = ranks.index(), ranks.size()
        return StepOrder(self.split, self.seed, self.batch_size, device, self.accumulate, share)


class SearchData(StepData):
    """Batches for the two levels of the search, as in DARTS, Sec. 2.3, without labels."""

    levels = BILEVEL
    shares = MappingProxyType(
        {"weights": "for weights", "architecture": "for architecture", "held_out": "held out"}
    )

    def divide(self, store: ImageStore) -> tuple[ImageStore, Split]:
        split = split_images(self.source, store, self.seed)
        split.check_batch(self.batch_size)
        return store, split


class UnlabelledData(StepData):
    """Batches for one level, of all images but those that a search of them would hold out."""

    levels = TRAINING
    shares = MappingProxyType({"weights": "for training", "held_out": "held out"})

    def divide(self, store: ImageStore) -> tuple[ImageStore, Split]:
        halves = split_images(self.source, store, self.seed)
        both = np.sort(np.concatenate([halves.weights, halves.architecture]))
        if len(both) < self.batch_size:
            raise ValueError(
                f"data.batch_size: {self.batch_size} does not fit {len(both)} training images"
            )
        return store, Split(weights=both, architecture=both[:0], held_out=halves.held_out)


def _ignore_signals(_worker: int) -> None:
    """Of a signal to the whole group: the main process alone decides how the run ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Or multiprocessing, whose SIGTERM they ignore, would wait for them for ever."""
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or PyTorch would complain of their end
    for worker in workers:
        worker.kill()
