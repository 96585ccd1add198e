"""What a search and a pretraining say and record of the masked loss."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mae_nas.cli.announce import announce_data
from mae_nas.cli.run import Run
from mae_nas.data import StepData
from mae_nas.masking import Masking
from mae_nas.objectives import Objective
from mae_nas.runs.listing import counted
from mae_nas.search.masked import MaskedModule, MaskedReading

log = logging.getLogger("mae_nas")

MOST_YARDSTICK_VALUES = 2**26
M = TypeVar("M", bound=MaskedReading)


@dataclass(frozen=True, kw_only=True)
class MaskedRun(Run[M], Generic[M]):
    """A run whose loss is masked.

    Args:
        masking: of its images.
        yardsticks: losses of predictors that learn nothing, by name.
    """

    module: MaskedModule
    masking: Masking
    yardsticks: dict[str, float]

    @property
    def is_divisible(self) -> bool:
        return self.config["objective"].get("target") != "permuted"

    def announce(self) -> None:
        announce_data(self)
        masking, module = self.masking, self.module
        log.info(
            "mask ratio %g (%g in whole patches of %d × %d), %s; %s; precision %s",
            *(masking.ratio, masking.effective_ratio(self.data.side)),
            *(masking.patch_size, masking.patch_size, masking.mode),
            *(
                length_in_words(module, self.last_step),
                self.config["trainer"]["precision"],
            ),
        )
        if self.yardsticks:
            said = yardstick_words(self.yardsticks)
            log.info("loss of predictors that learn nothing: %s", said)

    def record(self, readings: Sequence[M]) -> dict[str, object]:
        best = min(self.yardsticks.values(), default=math.inf)
        return {
            "yardsticks": self.yardsticks,
            "beats_yardsticks": readings[-1].held_out_loss < best,
            "mask_ratio": {
                "nominal": self.masking.ratio,
                "effective": self.masking.effective_ratio(self.data.side),
            },
        }

    def close(self, record: Mapping[str, Any], readings: Sequence[M]) -> None:
        last = readings[-1]
        log.info("held-out loss %.4f after %d steps", last.held_out_loss, last.step)
        if not record["beats_yardsticks"]:
            missed = {k: v for k, v in self.yardsticks.items() if last.held_out_loss >= v}
            log.warning("no better than %s: nothing learned yet", yardstick_words(missed))


def length_in_words(module: MaskedModule, last_step: int) -> str:
    """Of the schedule, and where the run ends if that is earlier."""
    said = f"{counted(module.epochs, 'epoch')} of {module.steps_per_epoch} steps"
    if module.length != module.epochs * module.steps_per_epoch:
        said = f"{module.length} steps ({module.length / module.steps_per_epoch:.2f} epochs)"
    return said if last_step == module.length else f"{said}, {last_step} of {module.length} in all"


def yardsticks_of(objective: Objective, data: StepData) -> dict[str, float]:
    """Of the objective, on as many held-out images as fit in memory beside the run."""
    batches, values = [], 0
    for batch in data.held_out_batches():
        batches.append(batch)
        values += batch.image.numel()
        if values > MOST_YARDSTICK_VALUES:
            break
    return objective.yardsticks(batches)


def yardstick_words(yardsticks: Mapping[str, float]) -> str:
    """Yardsticks as "constant 0.842, visible mean 0.714"."""
    return ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in yardsticks.items())
