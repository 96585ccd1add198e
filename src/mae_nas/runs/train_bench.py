"""How fast a training step of a found network is, beside the step as it is usually written."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mae_nas.batch import Batch
from mae_nas.decoders import HierarchicalDecoder
from mae_nas.genotype import Genotype
from mae_nas.masking import Masking
from mae_nas.network.complexity import Place, kept_bytes, measure_complexity
from mae_nas.network.pretraining import PretrainModule, PretrainSettings
from mae_nas.network.regularisers import cutout, keep_paths
from mae_nas.objectives import Reconstruction
from mae_nas.runs.bench import copy_rate, multiplication_rate
from mae_nas.search.optimizers import make_fused

EPOCHS, IMAGES = 600, 50_000


@dataclass(frozen=True)
class TrainWay:
    """A way to compute a step.

    Args:
        layout: of weights and images in memory.
        foreach: False: the optimizer steps a tensor at a time; None: as a training steps.
    """

    layout: torch.memory_format
    foreach: bool | None


TRAIN_WAYS: Mapping[str, TrainWay] = {
    "plain": TrainWay(torch.contiguous_format, foreach=False),
    "ours": TrainWay(torch.channels_last, foreach=None),
}
"""`plain` is the step of published code: channels first, the optimizer tensor by tensor."""


def compare_training(
    genotype: Genotype, place: Place, batch: int, repeats: int, on_step: Callable[[], None]
) -> list[dict[str, Any]]:
    """A row for each way and for pretraining: seconds, ratio to `plain`, images a second, memory.

    Seconds are the processor's. `pretraining` is a step of the masked pretraining of the same
    network, decoder included. `hours` are what the 600 epochs of CIFAR-10 would take so; fractions
    are those of the rates of large matrix products, by three times the forward multiply-adds, and
    of copying, by twice what is kept for the gradients.

    Args:
        genotype: of the network.
        place: its size and images.
        batch: images of a step, cutout, drop path, both heads, clipping and optimizer included.
        repeats: rounds in which both ways take their turn; times are medians.
        on_step: called after each timed step.
    """
    steps: dict[str, _TrainStep | _PretrainStep] = {
        name: _TrainStep(way, genotype, place, batch) for name, way in TRAIN_WAYS.items()
    }
    steps["pretraining"] = _PretrainStep(genotype, place, batch)
    kept = {name: kept_bytes(step.loss, step.weights) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()  # untimed: it makes the optimizer's state
    for _ in range(repeats):
        for name, step in steps.items():
            began = time.process_time()
            step()
            seconds[name].append(time.process_time() - began)
            on_step()
    plain = statistics.median(seconds["plain"])
    needed = 3 * batch * measure_complexity(genotype, place).macs / multiplication_rate()
    copied = copy_rate()
    return [
        {
            "name": name,
            "seconds": (median := statistics.median(taken)),
            "least": min(taken),
            "most": max(taken),
            "ratio": plain / median,
            "images_per_second": batch / median,
            "hours": EPOCHS * IMAGES / batch * median / 3600,
            "kept_mb": kept[name] / 1e6,
            "of_multiplication_rate": needed / median,
            "of_copy_rate": 2 * kept[name] / copied / median,
        }
        for name, taken in seconds.items()
    ]


class _TrainStep:
    """One step, by one way."""

    def __init__(self, way: TrainWay, genotype: Genotype, place: Place, batch: int) -> None:
        torch.manual_seed(0)
        self.network = place.network(genotype).to(memory_format=way.layout)
        self.network.layout = way.layout
        self.weights: Sequence[nn.Parameter] = list(self.network.parameters())
        options: dict[str, Any] = {"momentum": 0.9, "weight_decay": 3e-4, "foreach": way.foreach}
        self.optimizer = make_fused(partial(torch.optim.SGD, lr=0.025, **options), self.weights)
        images = torch.randn(batch, place.channels, place.side, place.side)
        self.labels = torch.arange(batch) % place.classes
        self.batch = Batch(images, torch.arange(batch), 1)

    def loss(self) -> Tensor:
        image = cutout(self.batch, 16)
        keep = keep_paths(self.batch, self.network.paths, 0.1)
        main, auxiliary = self.network.scores(image, keep)
        loss = functional.cross_entropy(main, self.labels)
        if auxiliary is None:
            return loss
        return loss + 0.4 * functional.cross_entropy(auxiliary, self.labels)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.weights, 5.0)
        self.optimizer.step()


class _PretrainStep:
    """One step of masked pretraining, as `mae-nas pretrain` takes it by default."""

    def __init__(self, genotype: Genotype, place: Place, batch: int) -> None:
        torch.manual_seed(0)
        size = replace(place.size, auxiliary=False)
        self.network = replace(place, size=size, classes=0).network(genotype)
        features = self.network.feature_info
        decoder = HierarchicalDecoder(features, place.channels)
        objective = Reconstruction(decoder, features, place.side, Masking())
        settings = PretrainSettings(partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05))
        self.module = PretrainModule(self.network, objective, settings, EPOCHS, 1, batch)
        self.weights: Sequence[nn.Parameter] = self.module.weights
        self.optimizer = self.module.configure_optimizers()
        images = torch.randn(batch, place.channels, place.side, place.side)
        self.batch = Batch(images, torch.arange(batch), 1)

    def loss(self) -> Tensor:
        return self.module.loss(self.batch)[0]

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.weights, 5.0)
        self.optimizer.step()
