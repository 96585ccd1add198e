"""The alternating search steps, Eq. (2) of MAE-NAS, as a LightningModule."""

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from mae_nas import ranks
from mae_nas.batch import Batch
from mae_nas.checks import Checked
from mae_nas.masking import BatchNorm
from mae_nas.objectives import Encode, Objective
from mae_nas.relaxations import Relaxation
from mae_nas.search.bilevel import Loss, VirtualStep, mean_gradient, unrolled_gradient
from mae_nas.search.optimizers import (
    OptimizerMaker,
    check_unrollable,
    keep_rates_on,
    make_fused,
)
from mae_nas.supernet import Supernet


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient became NaN or infinite."""


@dataclass(frozen=True)
class BilevelSettings(Checked):
    """How the two levels are stepped (DARTS, Sec. 3.1; the paper follows DARTS-'s protocols).

    Args:
        weight_optimizer: makes the optimizer of w, the decoder's weights included.
        arch_optimizer: makes the optimizer of α.
        min_lr: where the cosine schedule of w's learning rate ends, stepped per epoch.
        grad_clip: largest norm of w's gradient; α's is not clipped.
        warmup_epochs: epochs before the first architecture step. Not stated in the paper; we use 0
            because DARTS does.
        second_order: unrolled architecture gradient (DARTS, Eq. 7-8). Not stated in the paper; we
            use the first-order one because DARTS- does.
    """

    weight_optimizer: OptimizerMaker
    arch_optimizer: OptimizerMaker
    min_lr: float = 0.001
    grad_clip: float = 5.0
    warmup_epochs: int = 0
    second_order: bool = False

    def _problems(self) -> Iterator[str]:  # comparisons that NaN fails
        if not self.grad_clip > 0:
            yield f"grad_clip {self.grad_clip}: must be positive, e.g. 5.0"
        if self.warmup_epochs < 0:
            yield f"warmup_epochs {self.warmup_epochs}: must be 0 or more"
        if not self.min_lr >= 0:
            yield f"min_lr {self.min_lr}: must be 0 or more, e.g. 0.001"


class SearchModule(pl.LightningModule):
    """One supernet, one objective, and the alternating steps on w and α.

    All that varies with time is a function of the number of steps done, so that a search resumed at
    any step continues as if it had not stopped.

    Args:
        relaxation: owns α.
        supernet: the encoder; with the objective's decoder it owns w.
        objective: the loss.
        settings: of the two steps.
        epochs: length of the schedule.
        steps_per_epoch: weight steps in an epoch.
    """

    def __init__(
        self,
        relaxation: Relaxation,
        supernet: Supernet,
        objective: Objective,
        settings: BilevelSettings,
        epochs: int,
        steps_per_epoch: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.learning_rate = 0.0  # of the last weight step
        self.relaxation = relaxation
        self.supernet = supernet
        self.objective = objective
        self.settings = settings
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.is_random = any(getattr(m, "is_random", False) for m in supernet.modules())
        self.values: dict[str, Tensor] = {}
        # α is averaged over devices by hand: inside DDP the weight step would have to wait for it.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            self, [f"relaxation.{name}" for name, _ in relaxation.named_parameters()]
        )
        self.bad_step: Tensor  # first step that was not finite, on the device; -1: none
        self.register_buffer("bad_step", torch.tensor(-1), persistent=False)

    @cached_property
    def alphas(self) -> list[nn.Parameter]:
        """The architecture parameters, one per kind of cell."""
        return list(self.relaxation.parameters())

    @cached_property
    def weights(self) -> list[nn.Parameter]:
        """All other parameters: split by module, never by name; listed once, for there are many."""
        return [*self.supernet.parameters(), *self.objective.parameters()]

    def configure_optimizers(self) -> list[Optimizer]:
        weight_optimizer = make_fused(self.settings.weight_optimizer, self.weights)
        if self.settings.second_order:
            check_unrollable(weight_optimizer)
        return [weight_optimizer, make_fused(self.settings.arch_optimizer, self.alphas)]

    @property
    def optimizer_pair(self) -> tuple[Optimizer, Optimizer]:
        """The optimizers of w and of α, as torch knows them."""
        optimizers = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizers, list)
        weight_optimizer, arch_optimizer = optimizers
        return weight_optimizer, arch_optimizer

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """Keeps gradients within float16 under `16-mixed`: one scaler for both optimizers."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    @property
    def loss_scale(self) -> Tensor | float:
        """The scaler's present factor, on the device; 1 without a scaler."""
        scaler = self.scaler
        return 1.0 if scaler is None else scaler.scale(torch.ones((), device=self.device))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """L^M at the present w and α; a pure function of them and of the batch."""
        return self.objective(self._encoder(batch), batch)

    def _encoder(self, batch: Batch) -> Encode:
        if self.is_random:  # spaces with noise (S4): the only draw that is not from `randomness`
            torch.manual_seed(batch.key + ranks.index())
        mixtures = self.relaxation.mixture()  # α enters here and nowhere else
        return lambda image, visible: self.supernet(image, mixtures, visible)

    def training_step(self, batch: Mapping[str, Sequence[Batch]], batch_idx: int) -> None:  # noqa: ARG002
        """One alternating update: α on the architecture half, then w on the weight half."""
        self.values = {}
        if isinstance(scale := self.loss_scale, Tensor):
            self.values["loss_scale"] = scale
            self._flag(scale < 1)  # halved at each overflow, without end where a gradient is NaN
        self.set_learning_rate()
        if self.global_step >= self.arch_start:
            self.step_architecture(batch["arch"], batch["weights"])
        self.step_weights(batch["weights"])

    def step_architecture(self, batches: Sequence[Batch], weight_batches: Sequence[Batch]) -> None:
        """α only: no weight gradient is computed, and α's optimizer is stepped bare.

        Lightning counts the steps of optimizers it wraps: unwrapped, `global_step` counts batches,
        and a scaler is updated once a batch, by the weight step, with what both steps found.
        """
        optimizer, scaler = self.optimizer_pair[1], self.scaler
        if self.settings.second_order:
            scaler = None  # all in float32
            loss, gradients = self._unrolled_gradient(batches, weight_batches)
        else:
            with frozen(self.weights):
                losses = self._losses(batches)
                loss, gradients = mean_gradient(losses, self.alphas, self.loss_scale)
        self._record("arch_loss", loss)
        # An α without influence keeps grad None and is left untouched, weight decay included.
        for alpha, gradient in zip(self.alphas, gradients, strict=True):
            # Fused kernels read parameter and gradient side by side, whatever their strides.
            alpha.grad = None if gradient is None else gradient.contiguous()
        if scaler is not None:
            scaler.unscale_(optimizer)
        for name, alpha in self.relaxation.named_parameters():
            if alpha.grad is not None:
                label = name.removeprefix("alphas.").replace(".", "_")
                self.values[f"grad_norm_alpha_{label}"] = alpha.grad.norm()
        if scaler is None or all(gradient is None for gradient in gradients):
            optimizer.step()
        else:
            scaler.step(optimizer)
        for alpha in self.alphas:
            alpha.grad = None

    def step_weights(self, batches: Sequence[Batch]) -> None:
        """One step on w at fixed α; the gradient is the mean over the micro-batches."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, list)
        losses, values = [], []
        with frozen(self.alphas):
            optimizer[0].zero_grad()
            for batch in batches:
                loss, others = self.loss(batch)
                self.manual_backward(loss / len(batches))
                losses.append(loss.detach())
                values.append(others)
            means = {
                name: torch.stack([value[name] for value in values]).mean() for name in values[0]
            }
            loss = torch.stack(losses).mean()
            # At every step: when a checkpoint comes depends on the clock, what it holds may not.
            ranks.average_([loss, *means.values(), *self._running])
            self._record("weight_loss", loss)
            self.values |= means
            optimizer[0].step()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip w's gradient: only w's optimizer is wrapped.

        Lightning calls this with gradients unscaled, unless the optimizer can unscale by itself.
        """
        scaler = self.scaler
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.weights, self.settings.grad_clip, foreach=True)
        self.values["grad_norm_weights"] = norm
        if scaler is None:  # one skips the step
            # A finite loss may have an infinite gradient, and clipping would make NaN of that.
            self._flag(~norm.isfinite())

    @cached_property
    def _statistics(self) -> list[Tensor]:
        return [*self.supernet.buffers(), *self.objective.buffers()]

    @cached_property
    def _running(self) -> list[Tensor]:
        """Running statistics that the ranks do not share already."""
        modules = [*self.supernet.modules(), *self.objective.modules()]
        apart = [m for m in modules if not (isinstance(m, BatchNorm) and m.synchronised)]
        buffers = [buffer for module in apart for buffer in module.buffers(recurse=False)]
        return [buffer for buffer in buffers if buffer.is_floating_point()]

    def _losses(self, batches: Sequence[Batch]) -> list[Loss]:
        return [lambda batch=batch: self.loss(batch)[0] for batch in batches]

    def _unrolled_gradient(
        self, batches: Sequence[Batch], weight_batches: Sequence[Batch]
    ) -> tuple[Tensor, list[Tensor | None]]:
        # The passes at other weights than w must leave no trace in the running statistics; the one
        # at w that first order would leave is given up with them. Half precision would round away
        # the shift of w that the finite difference is taken over.
        full = torch.autocast(self.device.type, enabled=False)
        with preserved(self._statistics), full:
            return unrolled_gradient(
                self._losses(weight_batches),
                self._losses(batches),
                self.weights,
                self.alphas,
                self._virtual_step(),
            )

    def _virtual_step(self) -> VirtualStep:
        optimizer = self.optimizer_pair[0]
        group = optimizer.param_groups[0]
        momentum = [optimizer.state[weight].get("momentum_buffer") for weight in self.weights]
        buffers = [
            torch.zeros_like(weight) if buffer is None else buffer
            for weight, buffer in zip(self.weights, momentum, strict=True)
        ]
        return VirtualStep(group["lr"], group["momentum"], group["weight_decay"], buffers)

    @property
    def arch_start(self) -> int:
        """Steps before the first one that α has; all of them if it has none."""
        epochs = self.settings.warmup_epochs if self.relaxation.learns else self.epochs
        return epochs * self.steps_per_epoch

    @property
    def epoch(self) -> int:
        """Epochs completed, from the number of steps done."""
        return self.global_step // self.steps_per_epoch

    def set_learning_rate(self) -> None:
        """Of w: cosine from the optimizer's own to `min_lr`, per epoch (DARTS, Sec. 3.1)."""
        wave = (1 + math.cos(math.pi * self.epoch / self.epochs)) / 2
        optimizer, least = self.optimizer_pair[0], self.settings.min_lr
        self.learning_rate = least + (optimizer.defaults["lr"] - least) * wave
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.learning_rate)
            else:
                group["lr"] = self.learning_rate

    def on_train_start(self) -> None:
        if self.device.type == "cuda":
            keep_rates_on(self.device, self.optimizer_pair)

    @torch.no_grad()
    def held_out_loss(self, batches: Iterable[Batch]) -> float:
        """Mean masked loss over held-out images, with running statistics and fixed masks."""
        losses, images = [], []
        with evaluating(self):
            for batch in batches:
                losses.append(self.loss(batch)[0])
                images.append(len(batch.image))
        values = torch.stack(losses).tolist() if losses else []
        total, count = ranks.total(math.fsum(map(operator.mul, values, images)), sum(images))
        mean = total / count
        if not math.isfinite(mean) and self.bad_step < 0:
            self.bad_step.fill_(self.global_step)
        return mean

    @torch.no_grad()
    def picture(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Predicted images and hidden pixels (B, 1, S, S) of a batch, if the objective has such."""
        with evaluating(self):
            return self.objective.picture(self._encoder(batch), batch)

    def check_state(self, seed: int) -> None:
        """Raise if ranks differ in α, or if a loss or gradient was not finite; asks the device."""
        ranks.check_equal(self.alphas, "α")
        step = int(self.bad_step)
        if step >= 0:
            raise NonFiniteLossError(
                f"the loss or its gradient became NaN or infinite at step {step} (seed {seed}); "
                "the last checkpoint is from before it: try a lower search.weight_optimizer.lr or "
                "trainer.precision=32-true"
            )

    def _record(self, name: str, loss: Tensor) -> None:
        self.values[name] = loss
        self._flag(~loss.isfinite())

    def _flag(self, is_bad: Tensor) -> None:
        is_first_bad = is_bad & (self.bad_step < 0)
        self.bad_step.copy_(torch.where(is_first_bad, self.global_step, self.bad_step))


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """No gradient is computed for `parameters` inside; restored on an exception too."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def preserved(buffers: Sequence[Tensor]) -> Iterator[None]:
    """`buffers` have their values back afterwards."""
    saved = torch._foreach_add(list(buffers), 0) if buffers else []
    try:
        yield
    finally:
        if buffers:
            torch._foreach_copy_(list(buffers), list(saved))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` is in evaluation mode inside."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
