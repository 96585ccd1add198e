"""What a person sees while a run goes on."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from mae_nas.runs.callbacks import Clock, Readings
from mae_nas.stepping import StepModule

log = logging.getLogger("mae_nas")

BAR_SECONDS = 0.5
LINE_SECONDS = 10.0


@dataclass(eq=False)
class ProgressReport(pl.Callback):
    """A bar with ETA on a terminal; elsewhere a plain line every ten seconds.

    Both show what the run says of itself, and the share of time spent waiting for data.
    """

    total: int  # steps until the run ends
    clock: Clock
    readings: Readings[Any]
    console: Console
    status: Callable[[Mapping[str, float], Sequence[Any]], str]  # of the step's values, readings
    _shown = _logged = float("-inf")

    def __post_init__(self) -> None:
        self.has_bar = self.console.is_terminal
        whole = Column(no_wrap=True)  # on a narrow terminal the status wraps, the rest stays
        self.bar = Progress(
            BarColumn(bar_width=12),
            MofNCompleteColumn(table_column=whole),
            TimeRemainingColumn(table_column=whole),
            TextColumn("{task.fields[status]}", table_column=Column()),
            console=self.console,
        )

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        done = trainer.global_step
        self._task = self.bar.add_task("steps", total=self.total, completed=done, status="")
        if self.has_bar:
            self.bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, module: StepModule, *_: object) -> None:
        now, step = time.monotonic(), trainer.global_step
        pause = BAR_SECONDS if self.has_bar else LINE_SECONDS
        if now - self._shown >= pause or step >= self.total:
            self._shown = now
            self._show(step, module)
        self.clock.mark()

    def on_train_end(self, *_: object) -> None:
        if self.has_bar:
            self.bar.stop()

    def on_exception(self, *_: object) -> None:
        self.on_train_end()

    def _show(self, step: int, module: StepModule) -> None:
        status = self.status(module.row(), self.readings.readings)
        status += f"  waiting {100 * self.clock.waiting_share:.0f} %"
        self.bar.update(self._task, completed=step, status=status)
        now = time.monotonic()
        if now - self._logged >= LINE_SECONDS or step >= self.total:
            self._logged = now
            left = timedelta(seconds=round((self.total - step) * self.clock.seconds_per_step))
            level = logging.DEBUG if self.has_bar else logging.INFO  # to the log file alone
            log.log(level, "step %d/%d  %s  left %s", step, self.total, status, left)
