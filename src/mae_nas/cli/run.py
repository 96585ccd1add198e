"""A run: what a search and a training have in common from configuration to record."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from mae_nas.data import StepData
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.loggers import RunLog
from mae_nas.runs.measure import StepCost
from mae_nas.runs.trainer import TrainerSettings
from mae_nas.stepping import Reading, StepModule

Config = Mapping[str, Any]
R = TypeVar("R", bound=Reading)


@dataclass(frozen=True, kw_only=True)
class Run(ABC, Generic[R]):
    """A run about to start or to go on.

    Args:
        config: composed and checked.
        folder: of the run.
        settings: of the trainer.
        data: loaded.
        module: what takes the steps.
        last_step: where the run ends.
        cost: of a step, if it was measured.
    """

    config: Config
    folder: RunFolder
    settings: TrainerSettings
    data: StepData
    module: StepModule
    last_step: int
    cost: StepCost | None = None

    what: ClassVar[str]
    """What it is, in a word: "search"."""
    reading: ClassVar[type[Reading]]

    @property
    @abstractmethod
    def every(self) -> Path:
        """File of all readings."""

    @property
    def last(self) -> Path | None:
        """File of the last reading, if it has one of its own."""
        return None

    @property
    @abstractmethod
    def smaller(self) -> str:
        """What makes a step take less memory, where not even one image fits."""

    @property
    def is_divisible(self) -> bool:
        """Whether a batch may be computed in parts."""
        return True

    @property
    def identity(self) -> Mapping[str, str]:
        """What a checkpoint must say of itself to be continued, beside configuration and data."""
        return {}

    @abstractmethod
    def images(self, steps: int) -> float:
        """Seen in so many steps, from the first one."""

    @abstractmethod
    def announce(self) -> None:
        """Say what is about to be done, in a few lines."""

    @abstractmethod
    def take(self, earlier: Sequence[R]) -> R:
        """A reading, now."""

    @abstractmethod
    def values(self, reading: R) -> dict[str, float | str]:
        """The reading's numbers by name, `step` among them, to be shown as curves."""

    def ends(self, reading: R) -> bool:  # noqa: ARG002 - of a run that may end early
        """Whether the reading ends the run."""
        return False

    @abstractmethod
    def status(self, row: Mapping[str, float], readings: Sequence[R]) -> str:
        """What stands beside the progress bar, from the step's values and the readings so far."""

    @abstractmethod
    def draw(self, readings: Sequence[R], run_log: RunLog) -> None:
        """Draw plots/ anew, and hand the pictures to the log."""

    @abstractmethod
    def record(self, readings: Sequence[R]) -> dict[str, object]:
        """The part of the record that is this kind of run's own."""

    @abstractmethod
    def close(self, record: Mapping[str, Any], readings: Sequence[R]) -> None:
        """Say what came out and where it is."""
