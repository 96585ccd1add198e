"""The alternating search steps, Eq. (2) of MAE-NAS, as a LightningModule."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from mae_nas import ranks
from mae_nas.batch import Batch
from mae_nas.checks import Checked
from mae_nas.objectives import Encode, Objective
from mae_nas.relaxations import Relaxation, relative_entropy
from mae_nas.search.bilevel import Loss, VirtualStep, mean_gradient, unrolled_gradient
from mae_nas.search.masked import MaskedModule
from mae_nas.search.optimizers import (
    OptimizerMaker,
    check_unrollable,
    keep_rates_on,
    make_fused,
)
from mae_nas.supernet import Supernet


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


class SearchModule(MaskedModule):
    """One supernet, one objective, and the alternating steps on w and α.

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
        super().__init__(objective, epochs, steps_per_epoch, settings.grad_clip)
        self.relaxation = relaxation
        self.supernet = supernet
        self.settings = settings
        # α is averaged over devices by hand: inside DDP the weight step would have to wait for it.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            self, [f"relaxation.{name}" for name, _ in relaxation.named_parameters()]
        )

    @cached_property
    def alphas(self) -> list[nn.Parameter]:
        """The architecture parameters, one per kind of cell."""
        return list(self.relaxation.parameters())

    @property
    def trained(self) -> Sequence[nn.Module]:
        """All but α: split by module, never by name."""
        return self.supernet, self.objective

    @property
    def implementation(self) -> str:
        return self.supernet.implementation

    @property
    def way_out(self) -> str:
        return "a lower search.weight_optimizer.lr or trainer.precision=32-true"

    @property
    def named(self) -> Sequence[str]:
        norms = [f"grad_norm_alpha_{kind}" for kind in self.relaxation.alphas]
        return "weight_loss", "arch_loss", "grad_norm_weights", *norms

    def row(self) -> dict[str, float]:
        """Also the relative entropy of α."""
        entropies = {
            f"entropy_{kind}": relative_entropy(table.cpu().double().numpy())
            for kind, table in self.relaxation.scores().items()
        }
        return super().row() | entropies

    def work_hardest(self) -> None:
        self.settings = replace(self.settings, warmup_epochs=0)

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

    def encoder(self, batch: Batch) -> Encode:
        self.seed_noise(batch)
        mixtures = self.relaxation.mixture()  # α enters here and nowhere else
        return lambda image, visible: self.supernet(image, mixtures, visible)

    def training_step(self, batch: Mapping[str, Sequence[Batch]], batch_idx: int) -> None:  # noqa: ARG002
        """One alternating update: α on the architecture half, then w on the weight half."""
        self.begin()
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
        self.record("arch_loss", loss)
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
        """One step on w at fixed α."""
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        with frozen(self.alphas):
            self.descend(optimizers[0], batches)

    def _losses(self, batches: Sequence[Batch]) -> list[Loss]:
        return [lambda batch=batch: self.loss(batch)[0] for batch in batches]

    def _unrolled_gradient(
        self, batches: Sequence[Batch], weight_batches: Sequence[Batch]
    ) -> tuple[Tensor, list[Tensor | None]]:
        # The passes at other weights than w must leave no trace in the running statistics; the one
        # at w that first order would leave is given up with them. Half precision would round away
        # the shift of w that the finite difference is taken over.
        full = torch.autocast(self.device.type, enabled=False)
        with preserved(self.statistics), full:
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

    def set_learning_rate(self) -> None:
        """Of w: cosine from the optimizer's own to `min_lr`, per epoch (DARTS, Sec. 3.1)."""
        wave = (1 + math.cos(math.pi * self.epoch / self.epochs)) / 2
        optimizer, least = self.optimizer_pair[0], self.settings.min_lr
        self.set_rate(optimizer, least + (optimizer.defaults["lr"] - least) * wave)

    def on_train_start(self) -> None:
        if self.device.type == "cuda":
            keep_rates_on(self.device, self.optimizer_pair)

    def check_state(self, seed: int) -> None:
        """Also raise if ranks differ in α."""
        ranks.check_equal(self.alphas, "α")
        super().check_state(seed)


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
