"""What every training here shares: descent in micro-batches, values to show, a watch for NaN."""

import inspect
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from mae_nas import ranks
from mae_nas.batch import Batch
from mae_nas.masking import BatchNorm


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient became NaN or infinite."""


class StepModule(pl.LightningModule):
    """Steps on the weights w by hand, under any precision, accumulation and number of ranks.

    All that varies with time is a function of the number of steps done, so that a training resumed
    at any step continues as if it had not stopped.

    Args:
        epochs: length of the schedule.
        steps_per_epoch: weight steps in an epoch.
        grad_clip: largest norm of w's gradient.

    Attributes:
        values: of the step just done, by name, on the device.
        learning_rate: of the last weight step.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, grad_clip: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.epochs, self.steps_per_epoch, self.grad_clip = epochs, steps_per_epoch, grad_clip
        self.learning_rate = 0.0
        self.values: dict[str, Tensor] = {}
        self.bad_step: Tensor  # first step that was not finite, on the device; -1: none
        self.register_buffer("bad_step", torch.tensor(-1), persistent=False)

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss at the present weights, a pure function of them and of the batch; and values."""

    @property
    @abstractmethod
    def trained(self) -> Sequence[nn.Module]:
        """What w and its running statistics belong to."""

    @property
    @abstractmethod
    def implementation(self) -> str:
        """What computes it, for the record."""

    @property
    @abstractmethod
    def way_out(self) -> str:
        """What to try where the loss was not finite, for the error."""

    @property
    def named(self) -> Sequence[str]:
        """Values that come first in every row, and are NaN in steps that have none."""
        return "weight_loss", "grad_norm_weights"

    def row(self) -> dict[str, float]:
        """The values of the step just done, by name, in a fixed order."""
        names = [*self.named, *sorted(self.values.keys() - set(self.named))]
        absent = self.weights[0].new_tensor(float("nan"))
        # One transfer for all of them.
        stacked = torch.stack([self.values.get(name, absent).to(absent.dtype) for name in names])
        row: dict[str, float] = {
            "step": self.global_step,
            "epoch": self.global_step / self.steps_per_epoch,
            "learning_rate": self.learning_rate,
        }
        return row | dict(zip(names, stacked.tolist(), strict=True))

    @cached_property
    def weights(self) -> list[nn.Parameter]:
        """Parameters w, the decoder's included: listed once, for there are many."""
        return [weight for module in self.trained for weight in module.parameters()]

    @cached_property
    def statistics(self) -> list[Tensor]:
        """Buffers of all that is trained."""
        return [buffer for module in self.trained for buffer in module.buffers()]

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """Keeps gradients within float16 under `16-mixed`: one scaler for all optimizers."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    @property
    def loss_scale(self) -> Tensor | float:
        """The scaler's present factor, on the device; 1 without a scaler."""
        scaler = self.scaler
        return 1.0 if scaler is None else scaler.scale(torch.ones((), device=self.device))

    @property
    def length(self) -> int:
        """Steps of the whole schedule."""
        return self.epochs * self.steps_per_epoch

    @property
    def epoch(self) -> int:
        """Epochs completed, from the number of steps done."""
        return self.global_step // self.steps_per_epoch

    def work_hardest(self) -> None:
        """From now on every step does all that any step does: for its cost to be measured."""

    def begin(self) -> None:
        """A step begins: no values yet, and a loss scale that says whether there is hope."""
        self.values = {}
        if isinstance(scale := self.loss_scale, Tensor):
            self.values["loss_scale"] = scale
            self.flag(scale < 1)  # halved at each overflow, without end where a gradient is NaN

    def descend(self, optimizer: LightningOptimizer, batches: Sequence[Batch]) -> None:
        """One step on w; the gradient is the mean over the micro-batches.

        Args:
            optimizer: of w, as Lightning wraps it.
            batches: micro-batches.
        """
        losses, values = [], []
        optimizer.zero_grad()
        for batch in batches:
            loss, others = self.loss(batch)
            self.manual_backward(loss / len(batches))
            losses.append(loss.detach())
            values.append(others)
        means = {name: torch.stack([value[name] for value in values]).mean() for name in values[0]}
        loss = torch.stack(losses).mean()
        # At every step: when a checkpoint comes depends on the clock, what it holds may not.
        ranks.average_([loss, *means.values(), *self._apart])
        self.record("weight_loss", loss)
        self.values |= means
        optimizer.step()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip w's gradient: only w's optimizer is wrapped.

        Lightning calls this with gradients unscaled, unless the optimizer can unscale by itself.
        """
        scaler = self.scaler
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.weights, self.grad_clip, foreach=True)
        self.values["grad_norm_weights"] = norm
        if scaler is None:  # one skips the step
            # A finite loss may have an infinite gradient, and clipping would make NaN of that.
            self.flag(~norm.isfinite())

    @cached_property
    def is_random(self) -> bool:
        """Whether an operation is noise (S4): the only draw that is not from `randomness`."""
        parts = (part for module in self.trained for part in module.modules())
        return any(getattr(part, "is_random", False) for part in parts)

    def seed_noise(self, batch: Batch) -> None:
        """What noise draws from here on depends on the batch alone."""
        if self.is_random:
            torch.manual_seed(batch.key + ranks.index())

    def set_rate(self, optimizer: Optimizer, rate: float) -> None:
        """The learning rate of the step about to be done."""
        self.learning_rate = rate
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def mean_over(self, losses: Sequence[Tensor], images: Sequence[int]) -> float:
        """Mean loss over all images of all ranks; not finite is remembered as this step's."""
        values = torch.stack(list(losses)).tolist() if losses else []
        total, count = ranks.total(math.fsum(map(operator.mul, values, images)), sum(images))
        mean = total / count
        if not math.isfinite(mean) and self.bad_step < 0:
            self.bad_step.fill_(self.global_step)
        return mean

    def check_state(self, seed: int) -> None:
        """Raise if a loss or gradient was not finite; asks the device."""
        step = int(self.bad_step)
        if step >= 0:
            raise NonFiniteLossError(
                f"the loss or its gradient became NaN or infinite at step {step} (seed {seed}); "
                f"the last checkpoint is from before it: try {self.way_out}"
            )

    def record(self, name: str, loss: Tensor) -> None:
        """A loss of this step, on the device."""
        self.values[name] = loss
        self.flag(~loss.isfinite())

    def flag(self, is_bad: Tensor) -> None:
        """Remember this step if it is the first bad one, without asking the device."""
        is_first_bad = is_bad & (self.bad_step < 0)
        self.bad_step.copy_(torch.where(is_first_bad, self.global_step, self.bad_step))

    @cached_property
    def _apart(self) -> list[Tensor]:
        """Running statistics that the ranks do not share already."""
        parts = [part for module in self.trained for part in module.modules()]
        apart = [p for p in parts if not (isinstance(p, BatchNorm) and p.synchronised)]
        buffers = [buffer for module in apart for buffer in module.buffers(recurse=False)]
        return [buffer for buffer in buffers if buffer.is_floating_point()]


class Reading(ABC):
    """What a run would answer if it stopped after `step` steps: a line of a file of its folder.

    Concrete readings are frozen dataclasses.
    """

    step: int

    def mixing(self) -> Mapping[str, Sequence[Sequence[float]]]:
        """(E, K) mixing weights by kind of cell, where cells are searched."""
        return {}

    def to_dict(self) -> dict[str, object]:
        """Plain values."""
        return dict(self.__dict__)

    @classmethod
    def from_dict(cls, fields: dict[str, object]) -> Self:
        """The inverse of `to_dict`; ValueError if any is missing, others are passed over."""
        names = list(inspect.signature(cls).parameters)
        if missing := [name for name in names if name not in fields]:
            raise ValueError(f"a reading without {', '.join(missing)} is no {cls.__name__}")
        return cls(**{name: fields[name] for name in names})

    def is_news(self, before: Self | None) -> bool:  # noqa: ARG002 - of one that may be a warning
        """Whether it is to be told, given the one before."""
        return False

    @abstractmethod
    def in_words(self) -> str:
        """A line that tells it."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` is in evaluation mode inside."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
