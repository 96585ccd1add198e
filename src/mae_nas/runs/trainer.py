"""How a run is driven: length, precision, device, and what may not change a result."""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision

from mae_nas.checks import Checked
from mae_nas.network.latency import device_type
from mae_nas.runs.checkpoint import AtomicCheckpointIO

log = logging.getLogger("mae_nas")

Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed"]
SHORTEST_EPOCHS = 50
SHORTEST_STEPS = 6_000
READINGS = 50


@dataclass(frozen=True)
class TrainerSettings(Checked):
    """Length and means of a run.

    Args:
        max_epochs: length of the schedule; `auto` is 50 epochs, or as many more as 6,000 steps
            take. Not stated in the paper; we use 50 because DARTS does, and 6,000 because 2,000
            images would get 750 steps where DARTS gives CIFAR 19,500.
        max_steps: stop early after this many steps, without changing any schedule.
        accumulate: micro-batches that a device's share of a step is cut into.
        precision: `32-true`, `64-true`, `bf16-mixed`, `16-mixed`, or `auto`, see
            `automatic_precision`. α, its softmax, all statistics and the loss stay in float32 or
            wider; under `16-mixed` the losses are scaled, and a step that overflows is skipped.
        accelerator: `auto`, `cpu`, `cuda`, `mps`: where to run.
        devices: of one node; each computes an equal share of every batch.
        num_nodes: computers, each with as many devices.
        strategy: `auto` is `ddp` (gradients averaged by torch's DistributedDataParallel) where
            there are several devices.
        sync_batchnorm: BatchNorm over the images of all devices: the same search whatever their
            number. Otherwise each normalises by its own share, and running statistics are averaged.
        checkpoint_seconds: seconds between checkpoints: the most that a kill can lose.
        log_every: steps between rows of metrics.csv.
        preflight: do up to ten real steps on a copy first, to tell time and memory; they take half
            a second, or two steps where that is longer.
        fit_batch: raise `accumulate` where memory does not suffice until a step fits: the same
            search but for BatchNorm, whose statistics are those of a micro-batch.
    """

    max_epochs: int | Literal["auto"] = "auto"
    max_steps: int | None = None
    accumulate: int = 1
    precision: Precision | Literal["auto"] = "auto"
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp"] = "auto"
    sync_batchnorm: bool = False
    checkpoint_seconds: float = 60.0
    log_every: int = 10
    preflight: bool = True
    fit_batch: bool = False

    def _problems(self) -> Iterator[str]:
        counts = ("max_epochs", "max_steps", "accumulate", "log_every")
        for name in (*counts, "devices", "num_nodes"):
            value = getattr(self, name)
            if value not in ("auto", None) and value < 1:
                yield f"{name} {value}: must be at least 1"
        known = ("auto", *get_args(Precision))
        if self.precision not in known:
            yield f"precision {self.precision!r}: must be one of {', '.join(known)}"
        yield from self._device_problems()
        if self.fit_batch and (self.num_nodes > 1 or not self.preflight):
            yield "fit_batch: needs preflight=true and num_nodes=1"
        if not self.checkpoint_seconds > 0:  # NaN too
            yield f"checkpoint_seconds {self.checkpoint_seconds}: must be positive"

    def _device_problems(self) -> Iterator[str]:
        available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
        if self.accelerator in available and not available[self.accelerator]():
            yield f"accelerator {self.accelerator}: none is here; use auto or cpu"
        if self.accelerator == "mps" and self.ranks > 1:
            yield f"devices {self.devices}: mps has one"
        if self.accelerator == "cuda" and self.devices > torch.cuda.device_count() > 0:
            yield f"devices {self.devices}: {torch.cuda.device_count()} are here"

    @property
    def ranks(self) -> int:
        """Processes that share the search, one for each device."""
        return self.devices * self.num_nodes

    @property
    def parts(self) -> int:
        """Micro-batches that a batch is cut into, on all devices together."""
        return self.accumulate * self.ranks

    def epochs(self, steps_per_epoch: int) -> int:
        """The length of the schedule in epochs."""
        if self.max_epochs != "auto":
            return self.max_epochs
        return max(SHORTEST_EPOCHS, math.ceil(SHORTEST_STEPS / steps_per_epoch))

    def make(self, last_step: int, callbacks: Sequence[pl.Callback], root: Path) -> pl.Trainer:
        """Lightning's trainer with our callbacks and no others, up to `last_step`.

        Only steps end it: how Lightning counts epochs across a resume is then of no consequence.
        """
        _quieten()
        precision, device = self.precision, device_type(self.accelerator)
        if precision == "auto":
            precision = automatic_precision(self.accelerator)
        plugins: list[Any] = [AtomicCheckpointIO()]
        if precision == "16-mixed":  # Lightning's own choice on a CPU would be bf16, silently
            scaler = torch.amp.GradScaler(device)
            plugins.append(MixedPrecision(precision, device, scaler))
        trainer = pl.Trainer(
            max_epochs=-1,
            max_steps=last_step,
            precision=None if precision == "16-mixed" else precision,
            accelerator=self.accelerator,
            devices=self.devices,
            num_nodes=self.num_nodes,
            strategy="ddp" if self.ranks > 1 else self.strategy,
            use_distributed_sampler=False,
            callbacks=list(callbacks),
            logger=False,
            plugins=plugins,
            default_root_dir=root,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        _drop_foreign_callbacks(trainer, callbacks)
        return trainer


@dataclass(frozen=True)
class Means(Checked):
    """What may change the speed of a run and never its result.

    Args:
        workers: loader processes for data that does not fit on the device; `auto` is one per core,
            at most 4.
        resident: keep the images on the device; `auto` if they take up to a quarter of its memory.
        threads: of the CPU; `auto` leaves it to torch. A narrow network is fastest with one.
            (Sums may round differently with another number, as on another computer.)
    """

    workers: int | Literal["auto"] = "auto"
    resident: bool | Literal["auto"] = "auto"
    threads: int | Literal["auto"] = "auto"

    def _problems(self) -> Iterator[str]:
        if self.workers != "auto" and self.workers < 0:
            yield f"workers {self.workers}: must be 0 or more, or auto"
        if self.threads != "auto" and self.threads < 1:
            yield f"threads {self.threads}: must be at least 1, or auto"


@dataclass(frozen=True)
class NetworkEfficiency(Means):
    """Of the training of a found network.

    Args:
        workers, resident, threads: see `Means`.
        compile: torch.compile makes kernels of the network; the first steps take minutes.
    """

    compile: bool = False


@dataclass(frozen=True)
class Efficiency(Means):
    """Of a search.

    Args:
        workers, resident, threads: see `Means`.
        cell: `fused` computes the supernet by source node, `reference` edge by edge, as it is
            defined: the same search but for rounding, at a fraction of the speed.
        cpp: compile kernels for `fused`: for this computer's CPU, if it has a compiler, or for its
            GPU by triton, if torch came with it.
        recompute: computes some of `fused` twice, to hold less memory.
    """

    cell: Literal["fused", "reference"] = "fused"
    cpp: bool = True
    recompute: bool = False

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.cell not in ("fused", "reference"):
            yield f"cell {self.cell!r}: must be fused or reference"
        if self.recompute and self.cell == "reference":
            yield "recompute: is of the fused cell; leave it out, or use efficiency=fused"


def automatic_precision(accelerator: str) -> Precision:
    """What `precision=auto` is on this computer: bfloat16 where a GPU has it, float32 on a CPU."""
    if device_type(accelerator) != "cuda" or not torch.cuda.is_available():
        return "32-true"
    # Torch would also count what it emulates, slower than float32.
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if has_bf16 else "16-mixed"


def reading_interval(total_steps: int) -> int:
    """Steps between readings: fifty in a run, an epoch each by default."""
    return math.ceil(total_steps / READINGS)


def _drop_foreign_callbacks(trainer: pl.Trainer, ours: Sequence[pl.Callback]) -> None:
    # Any installed package may push callbacks into every Trainer through an entry point. (Lightning
    # makes `callbacks` on the instance and declares it nowhere: hence the ignores.)
    foreign = [c for c in trainer.callbacks if c not in ours]  # type: ignore[attr-defined]
    if foreign:
        names = ", ".join(sorted({type(c).__name__ for c in foreign}))
        log.info("Not running callbacks that other installed packages add: %s", names)
        trainer.callbacks = list(ours)  # type: ignore[attr-defined]


def _quieten() -> None:
    for room in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(room).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Consider setting `persistent_workers.*",
        ".*LeafSpec.*is deprecated.*",
        ".*your dataloader is not resumable.*",
        ".*number of training batches.*smaller than the logging interval.*",
        ".*GPU available but not used.*",
        ".*no pre-optimization state was saved.*",
        ".*Precision bf16-mixed is not supported.*",
    ):
        warnings.filterwarnings("ignore", message)
