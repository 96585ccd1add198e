"""What happens beside the training: rows, readings, checkpoints, a clean stop.

Callbacks read values and write files. None changes what the search computes.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import lightning.pytorch as pl

from mae_nas import ranks
from mae_nas.runs.checkpoint import FORMAT
from mae_nas.runs.files import write_json
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.loggers import RunLog
from mae_nas.runs.tables import JsonLines, MetricsTable
from mae_nas.stepping import Reading, StepModule
from mae_nas.stopping import Stopper

log = logging.getLogger("mae_nas")

CHECK_STEPS = 50
R = TypeVar("R", bound=Reading)


class Clock(pl.Callback):
    """Seconds of the whole run, earlier processes included, and how they were spent."""

    def __init__(self) -> None:
        self.earlier = self.waiting = self.training = 0.0
        self.steps = 0
        self._born = self._began = self._ended = time.monotonic()

    @property
    def here(self) -> float:
        """Seconds since this process began to train."""
        return time.monotonic() - self._born

    @property
    def total(self) -> float:
        """Seconds of the run so far."""
        return self.earlier + self.here

    @property
    def waiting_share(self) -> float:
        """Share of the time of all steps that was spent waiting for their data."""
        return self.waiting / max(self.waiting + self.training, 1e-9)

    @property
    def seconds_per_step(self) -> float:
        """Mean duration of a step, without readings and checkpoints."""
        return (self.waiting + self.training) / max(self.steps, 1)

    def on_train_start(self, *_: object) -> None:
        self._born = self._ended = time.monotonic()

    def on_train_batch_start(self, *_: object) -> None:
        self._began = time.monotonic()
        self.waiting += self._began - self._ended

    def on_train_batch_end(self, *_: object) -> None:
        self.training += time.monotonic() - self._began
        self.steps += 1

    def mark(self) -> None:
        """The other callbacks are done with the step: from here on the loop waits for data."""
        self._ended = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        spent = {"waiting": self.waiting, "training": self.training, "steps": self.steps}
        return {"seconds": self.total, **spent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.earlier, self.steps = state_dict["seconds"], state_dict["steps"]
        self.waiting, self.training = state_dict["waiting"], state_dict["training"]


class Metrics(pl.Callback):
    """A row of metrics.csv, and of the logger if there is one, at step 1 and every few steps.

    Rows hold the step's own values, not a running mean, so that a resumed run writes the same ones.
    """

    def __init__(self, folder: RunFolder, every: int, clock: Clock, run_log: RunLog) -> None:
        self.table = MetricsTable(folder.metrics)
        self.every = every
        self.clock = clock
        self.run_log = run_log

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        self.table.cut(trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, module: StepModule, *_: object) -> None:
        if trainer.global_step % self.every == 0 or trainer.global_step == 1:
            row = module.row()
            row |= {"seconds": self.clock.total, "waiting_share": self.clock.waiting_share}
            self.table.append(row)
            self.run_log.row(row)


@dataclass(eq=False)
class Readings(pl.Callback, Generic[R]):
    """A reading every `interval` steps and where the run ends."""

    kind: type[R]
    every: Path  # file of all readings, a line each
    take: Callable[[list[R]], R]  # given the earlier ones
    interval: int
    last_step: int  # where the run ends
    last: Path | None = None  # file of the last one
    ends: Callable[[R], bool] = lambda _: False  # whether a reading ends the run
    readings: list[R] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = JsonLines(self.every)

    @property
    def step(self) -> int:
        """Of the last reading; -1 before the first."""
        return self.readings[-1].step if self.readings else -1

    @property
    def is_complete(self) -> bool:
        """Whether the run has reached its last step."""
        return self.step >= self.last_step

    @property
    def has_ended_run(self) -> bool:
        """Whether the last reading ended it."""
        return bool(self.readings) and self.ends(self.readings[-1])

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        # The reading that ended a stopped run is none of the continued one's.
        steps = range(0, trainer.global_step + 1, self.interval)
        self.restore()
        self.readings = [reading for reading in self.readings if reading.step in steps]
        if trainer.is_global_zero:
            self.table.cut(steps)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        step = trainer.global_step
        if step % self.interval == 0 or step >= self.last_step or trainer.should_stop:
            before, reading = self.readings[-1:], self.take(self.readings)
            self.readings.append(reading)
            if trainer.is_global_zero:
                self.table.append(reading.to_dict())
                if self.last is not None:
                    write_json(self.last, reading.to_dict())
            if trainer.is_global_zero and reading.is_news(before[0] if before else None):
                log.warning("%s", reading.in_words())
        if self.has_ended_run:
            trainer.should_stop = True

    def restore(self) -> None:
        """Take the readings from the file."""
        self.readings = [cast("R", self.kind.from_dict(row)) for row in self.table.rows()]


@dataclass(eq=False)
class Gallery(pl.Callback):
    """Draws the pictures after a reading; runs after `Checkpoints`, since drawing takes seconds.

    Drawing takes at most a twentieth of the time: readings that come too fast go undrawn, the last
    one never.
    """

    draw: Callable[[list[Any]], None]  # draws the run's pictures, given all readings
    readings: Readings[Any]
    clock: Clock
    _drawn_step = -1
    _next_drawing = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if self.readings.step == trainer.global_step and self.clock.here >= self._next_drawing:
            self._draw()

    def settle(self) -> None:
        """Final pictures; also for a run that was killed between its last step and its record."""
        if not self.readings.readings:
            self.readings.restore()
        if self.readings.step != self._drawn_step:
            self._draw()

    def _draw(self) -> None:
        began = self.clock.here
        self.draw(self.readings.readings)
        self._drawn_step = self.readings.step
        self._next_drawing = self.clock.here + 20 * (self.clock.here - began)


@dataclass(eq=False)
class Checkpoints(pl.Callback):
    """checkpoints/last.ckpt: every so many seconds, after every reading, and where a search ends.

    Runs after `Readings`, so that a checkpoint never lacks a reading that its step has.
    """

    folder: RunFolder
    seconds: float  # between checkpoints
    readings: Readings[Any]
    seed: int  # named if the loss is not finite
    identity: Mapping[str, str]  # written into the checkpoint, to tell the runs apart

    def on_train_start(self, *_: object) -> None:
        self._saved = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, module: StepModule, *_: object) -> None:
        step = trainer.global_step
        (is_due,) = ranks.maximum(time.monotonic() - self._saved >= self.seconds)
        is_due = is_due or self.readings.step == step
        if is_due or step % CHECK_STEPS == 0:
            module.check_state(self.seed)  # a bad checkpoint never replaces a good one
        if is_due:
            trainer.save_checkpoint(self.folder.checkpoint)
            self._saved = time.monotonic()

    def on_save_checkpoint(
        self, _trainer: object, module: StepModule, checkpoint: dict[str, Any]
    ) -> None:
        backend = module.implementation
        checkpoint.update(self.identity, format=FORMAT, backend=backend)


class StopOnSignal(pl.Callback):
    """A signal ends the search after the step in progress, on all ranks."""

    def __init__(self, stopper: Stopper) -> None:
        self.stopper = stopper
        self.agreed = 0  # by all ranks: the signal that ends the search

    def on_train_start(self, *_: object) -> None:
        """Take over from Lightning, which would end without a reading; it restores the handlers."""
        self.stopper.listen()
        self.stopper.is_patient = True

    def on_train_end(self, *_: object) -> None:
        self.stopper.is_patient = False

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        # All ranks stop at the same step, whichever was told to.
        (self.agreed,) = ranks.maximum(self.stopper.received)
        trainer.should_stop = trainer.should_stop or self.agreed > 0
