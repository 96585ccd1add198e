"""Training a found network with labels, as a LightningModule (method of the DARTS papers)."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from mae_nas import ranks
from mae_nas.batch import Batch
from mae_nas.checks import Checked
from mae_nas.data.augment import Augmentation
from mae_nas.network.derived import DerivedNetwork
from mae_nas.network.regularisers import cutout, keep_paths, mix
from mae_nas.search.optimizers import OptimizerMaker, keep_rates_on, make_fused
from mae_nas.stepping import Reading, StepModule, evaluating


@dataclass(frozen=True)
class Recipe(Checked):
    """How a found network is trained (DARTS, Sec. 3.2 and 3.3).

    Args:
        optimizer: makes the optimizer.
        schedule: of the learning rate, from the optimizer's own to 0, stepped per epoch: `cosine`
            as on CIFAR, `linear` as on ImageNet.
        warmup_epochs: in which the rate rises from 0, step by step.
        grad_clip: largest norm of the gradient.
        drop_path: probability that an edge's output is dropped, at the end; it grows from 0 with
            the epochs.
        cutout: side of the square that is blanked, pixels; 0 for none.
        auxiliary: weight of the auxiliary head's loss, where the network has one.
        label_smoothing: share of the target that all classes have alike.
        mixup, cutmix: parameter a of Beta(a, a); 0 for none. Not of the papers.
        policy, colour_jitter, smallest_crop: see `Augmentation`. The first is not of the papers.
        ema: share that the average of the weights keeps at each step, e.g. 0.9999, less in the
            first steps; it is then the average that is judged, with the statistics of the
            present weights. 0 for none. Not of the papers.
        validates: judge by held-out training images (`data.held_out`) during training, so that
            something can be chosen; the test images are then seen once, at the end.
    """

    optimizer: OptimizerMaker
    schedule: Literal["cosine", "linear"] = "cosine"
    warmup_epochs: int = 0
    grad_clip: float = 5.0
    drop_path: float = 0.2
    cutout: int = 16
    auxiliary: float = 0.4
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    policy: str = ""
    colour_jitter: float = 0.0
    smallest_crop: float = 0.0
    ema: float = 0.0
    validates: bool = False

    @property
    def augmentation(self) -> Augmentation:
        """ValueError if it cannot be."""
        return Augmentation(self.policy, self.colour_jitter, self.smallest_crop)

    def _problems(self) -> Iterator[str]:  # comparisons that NaN fails
        if self.schedule not in ("cosine", "linear"):
            yield f"schedule {self.schedule!r}: must be cosine or linear"
        if not self.grad_clip > 0:
            yield f"grad_clip {self.grad_clip}: must be positive, e.g. 5.0"
        for name in ("drop_path", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name} {getattr(self, name)}: must lie in [0, 1)"
        for name in ("warmup_epochs", "cutout", "auxiliary", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                yield f"{name} {getattr(self, name)}: must be 0 or more"
        try:
            _ = self.augmentation
        except ValueError as error:
            yield from str(error).splitlines()

    def rate(self, step: int, epochs: int, steps_per_epoch: int) -> float:
        """Of the whole learning rate, in [0, 1], at a step counted from 0."""
        warm = self.warmup_epochs * steps_per_epoch
        if step < warm:
            return (step + 1) / warm
        done = (step // steps_per_epoch - self.warmup_epochs) / max(epochs - self.warmup_epochs, 1)
        return 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class TrainReading(Reading):
    """How well the network does after `step` steps, a line of readings.jsonl.

    Args:
        step: steps done.
        epoch: the same in epochs.
        loss: mean cross entropy on the images that it is judged by.
        top1, top5: share of those whose class is the first, or among the first five.
        images: how many.
        judged_by: `validation` or `test`.
    """

    step: int
    epoch: float
    loss: float
    top1: float
    top5: float
    images: int
    judged_by: str

    def in_words(self) -> str:
        return (
            f"{self.judged_by} accuracy {100 * self.top1:.2f} % (top 5 {100 * self.top5:.2f} %), "
            f"loss {self.loss:.4f}, {self.images:,} images"
        )


class Judgement(NamedTuple):
    """On some images: mean loss, and how often an image of one class (row) was taken for another.

    Shapes:
        confusion: (K, K), int64; top5: images whose class is among the first five.
    """

    loss: float
    top5: int
    confusion: Tensor

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def top1(self) -> int:
        return int(self.confusion.trace())


class TrainModule(StepModule):
    """One network, its labels, and the steps on its weights.

    Args:
        network: with a classifier.
        recipe: of the training.
        epochs: length of the schedule.
        steps_per_epoch: steps in an epoch.
        compiles: whether torch.compile makes kernels of the network.
    """

    def __init__(
        self,
        network: DerivedNetwork,
        recipe: Recipe,
        epochs: int,
        steps_per_epoch: int,
        compiles: bool = False,
    ) -> None:
        super().__init__(epochs, steps_per_epoch, recipe.grad_clip)
        self.network, self.recipe = network, recipe
        self.average = copy.deepcopy(network).requires_grad_(False) if recipe.ema else None
        self.compiles, self._is_hardest = compiles, False

    def work_hardest(self) -> None:
        self._is_hardest = True

    @property
    def _ramp(self) -> float:
        """Of drop path's probability: from 0 towards 1 with the epochs."""
        return 1.0 if self._is_hardest else self.epoch / self.epochs

    @cached_property
    def _scores(self) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """Made on first use: a copy must not share a compiled function, network and all."""
        return torch.compile(self.network.scores) if self.compiles else self.network.scores

    @property
    def trained(self) -> Sequence[nn.Module]:
        return (self.network,)

    @property
    def implementation(self) -> str:
        return "compiled" if self.compiles else "eager"

    @property
    def way_out(self) -> str:
        return "a lower recipe.optimizer.lr or trainer.precision=32-true"

    @property
    def judged(self) -> DerivedNetwork:
        """The network that is judged and exported: the average, if there is one."""
        return self.network if self.average is None else self.average

    def configure_optimizers(self) -> Optimizer:
        return make_fused(self.recipe.optimizer, self.weights)

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
        rate = self.recipe.rate(self.global_step, self.epochs, self.steps_per_epoch)
        self.set_rate(self._optimizer, rate * self._optimizer.defaults["lr"])
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        self.descend(optimizer, batch["weights"])
        if self.average is not None:
            self._follow(self.average)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of both heads; a pure function of weights, batch and epoch."""
        recipe = self.recipe
        self.seed_noise(batch)
        if recipe.cutout:
            batch = batch._replace(image=cutout(batch, recipe.cutout))
        mixed = mix(batch, recipe.mixup, recipe.cutmix)
        keep = keep_paths(batch, self.network.paths, recipe.drop_path * self._ramp)
        main, auxiliary = self._scores(mixed.image, keep)
        entropy = partial(functional.cross_entropy, label_smoothing=recipe.label_smoothing)

        def of(scores: Tensor) -> Tensor:
            wide = scores if scores.dtype == torch.float64 else scores.float()
            if mixed.share == 1:
                return entropy(wide, mixed.first)
            first, second = entropy(wide, mixed.first), entropy(wide, mixed.second)
            return mixed.share * first + (1 - mixed.share) * second

        loss = of(main)
        right = (main.argmax(1) == mixed.first).to(loss.dtype).mean()
        if auxiliary is not None:
            return loss + recipe.auxiliary * of(auxiliary), {"accuracy": right}
        return loss, {"accuracy": right}

    @torch.no_grad()
    def judge(self, batches: Iterable[Batch]) -> Judgement:
        """On images of all ranks, with running statistics."""
        classes = self.judged.classes
        confusion = torch.zeros(classes * classes, dtype=torch.int64, device=self.device)
        top5 = torch.zeros((), dtype=torch.int64, device=self.device)
        losses, images = [], []
        with evaluating(self):
            for batch in batches:
                assert batch.label is not None
                self.seed_noise(batch)
                scores = self.judged(batch.image)
                wide = scores if scores.dtype == torch.float64 else scores.float()
                losses.append(functional.cross_entropy(wide, batch.label))
                images.append(len(batch.image))
                cells = batch.label * classes + wide.argmax(1)
                confusion += torch.bincount(cells, minlength=classes * classes)
                first = wide.topk(min(5, classes), 1).indices
                top5 += (first == batch.label[:, None]).any(1).sum()
        loss = self.mean_over(losses, images)
        counts = ranks.total(*confusion.tolist(), int(top5))
        table = torch.tensor(counts[:-1], dtype=torch.int64).view(classes, classes)
        return Judgement(loss, int(counts[-1]), table)

    @torch.no_grad()
    def _follow(self, average: DerivedNetwork) -> None:
        """The average moves towards the weights; statistics are the network's own."""
        # As much as it has seen, at first: it would else remember the start.
        keep = min(self.recipe.ema, self.global_step / (self.global_step + 10))
        mine: list[Tensor] = list(average.parameters())
        theirs: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - keep)
        torch._foreach_copy_(list(average.buffers()), list(self.network.buffers()))


def take_train_reading(
    module: TrainModule, batches: Iterable[Batch], judged_by: str
) -> TrainReading:
    """Judge without disturbing the training."""
    found = module.judge(batches)
    return TrainReading(
        step=module.global_step,
        epoch=module.global_step / module.steps_per_epoch,
        loss=found.loss,
        top1=found.top1 / found.images,
        top5=found.top5 / found.images,
        images=found.images,
        judged_by=judged_by,
    )
