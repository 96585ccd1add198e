"""Masked pretraining of a network: the search's loss, Eq. (2) of MAE-NAS, and nothing to search."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mae_nas.batch import Batch
from mae_nas.checks import Checked
from mae_nas.network.encoder import Encoder
from mae_nas.objectives import Encode, Objective
from mae_nas.search.masked import MaskedModule, MaskedReading
from mae_nas.search.optimizers import OptimizerMaker, keep_rates_on, make_fused

RATE_IMAGES = 256
"""Of the batch that a learning rate is given for."""


@dataclass(frozen=True)
class PretrainSettings(Checked):
    """How a network is pretrained.

    The paper pretrains none; this is the usual recipe of masked images (SimMIM, SparK).

    Args:
        optimizer: makes the optimizer; its rate is for 256 images a step and grows with the batch.
            Norms, biases and other vectors have no weight decay, as in SimMIM.
        warmup: share of the steps in which the rate rises from 0.
        grad_clip: largest norm of the gradient.
        steps: length of the schedule, where it is not `trainer.max_epochs`.
    """

    optimizer: OptimizerMaker
    warmup: float = 0.05
    grad_clip: float = 5.0
    steps: int | None = None

    def _problems(self) -> Iterator[str]:  # comparisons that NaN fails
        if not 0 <= self.warmup < 1:
            yield f"warmup {self.warmup}: must lie in [0, 1), e.g. 0.05"
        if not self.grad_clip > 0:
            yield f"grad_clip {self.grad_clip}: must be positive, e.g. 5.0"
        if self.steps is not None and self.steps < 1:
            yield f"steps {self.steps}: must be 1 or more, or null"

    def rate(self, step: int, length: int) -> float:
        """Of the whole learning rate, in [0, 1], at a step counted from 0: rise, then cosine."""
        warm = math.ceil(self.warmup * length)
        if step < warm:
            return (step + 1) / warm
        # At least one step long, and at its end for steps beyond, which measurements take.
        done = min(1.0, (step - warm) / max(1, length - warm))
        return (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class PretrainReading(MaskedReading):
    """How well the network rebuilds held-out images, a line of readings.jsonl.

    Args:
        step: steps done.
        epoch: the same in epochs.
        held_out_loss: masked loss on held-out images, fixed masks.
    """

    step: int
    epoch: float
    held_out_loss: float

    def in_words(self) -> str:
        return f"held-out loss {self.held_out_loss:.4f} at step {self.step}"


class PretrainModule(MaskedModule):
    """One network, one objective, and the steps on both.

    Args:
        network: all of which the objective's decoder depends on.
        objective: the loss.
        settings: of the steps.
        epochs: length of the schedule, unless `settings.steps` says.
        steps_per_epoch: steps in an epoch.
        batch_size: images of a step, on all devices together.
        compiles: whether torch.compile makes kernels of the network.
    """

    def __init__(
        self,
        network: Encoder,
        objective: Objective,
        settings: PretrainSettings,
        epochs: int,
        steps_per_epoch: int,
        batch_size: int,
        compiles: bool = False,
    ) -> None:
        super().__init__(objective, epochs, steps_per_epoch, settings.grad_clip)
        self.network, self.settings = network, settings
        self.batch_size, self.compiles = batch_size, compiles

    @property
    def length(self) -> int:
        return self.settings.steps or super().length

    @cached_property
    def _maps(self) -> Callable[[Tensor], Sequence[Tensor]]:
        """Made on first use: a copy must not share a compiled function, network and all."""
        maps = self.network.maps
        return torch.compile(maps) if self.compiles else maps

    def encoder(self, batch: Batch) -> Encode:
        self.seed_noise(batch)
        return lambda image, _visible: self._maps(image)

    @property
    def trained(self) -> Sequence[nn.Module]:
        return self.network, self.objective

    @property
    def implementation(self) -> str:
        return "compiled" if self.compiles else "eager"

    @property
    def way_out(self) -> str:
        return "a lower pretraining.optimizer.lr or trainer.precision=32-true"

    def configure_optimizers(self) -> Optimizer:
        decayed = [weight for weight in self.weights if weight.ndim > 1]
        plain = [weight for weight in self.weights if weight.ndim <= 1]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        return make_fused(self.settings.optimizer, groups)

    def on_train_start(self) -> None:
        if self.device.type == "cuda":
            keep_rates_on(self.device, [self._optimizer])

    @property
    def _optimizer(self) -> Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return optimizer

    def training_step(self, batch: Mapping[str, Sequence[Batch]], batch_idx: int) -> None:  # noqa: ARG002
        """One step on the weights."""
        self.begin()
        whole = self._optimizer.defaults["lr"] * self.batch_size / RATE_IMAGES
        rate = self.settings.rate(self.global_step, self.length)
        self.set_rate(self._optimizer, whole * rate)
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        self.descend(optimizer, batch["weights"])


def take_pretrain_reading(module: PretrainModule, held_out: Iterable[Batch]) -> PretrainReading:
    """Judge without disturbing the training."""
    return PretrainReading(
        step=module.global_step,
        epoch=module.global_step / module.steps_per_epoch,
        held_out_loss=module.held_out_loss(held_out),
    )
