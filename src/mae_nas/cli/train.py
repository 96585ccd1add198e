"""`mae-nas train`: what the training of a found network builds, reads, draws and records."""

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.optim import Optimizer

from mae_nas import ranks
from mae_nas.cli.announce import announce_data
from mae_nas.cli.assemble import Maker, batch_problems, common_parts, load, ready
from mae_nas.cli.build import build
from mae_nas.cli.check import Layout, Root
from mae_nas.cli.run import Config, Run
from mae_nas.data import ImageSource
from mae_nas.data.labelled import LabelledData
from mae_nas.data.stream import Preprocessing
from mae_nas.genotype import Genotype
from mae_nas.network import DerivedNetwork, NetworkSize
from mae_nas.network.complexity import Place, measure_complexity
from mae_nas.network.stored import identity, start_from
from mae_nas.network.training import (
    Judgement,
    Recipe,
    TrainModule,
    TrainReading,
    take_train_reading,
)
from mae_nas.runs.checkpoint import checkpoint_in, read_checkpoint
from mae_nas.runs.files import write_json
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.listing import counted
from mae_nas.runs.loggers import LoggerSettings, RunLog
from mae_nas.runs.tables import MetricsTable
from mae_nas.runs.train_plots import plot_classes, plot_curves
from mae_nas.runs.trainer import NetworkEfficiency, TrainerSettings
from mae_nas.spaces import S0
from mae_nas.spaces.derivation import named_genotype

log = logging.getLogger("mae_nas")


@dataclass(frozen=True, kw_only=True)
class TrainRoot(Root):
    """The keys of a training that belong to no section."""

    genotype: str  # `random:SEED` is of S0
    init_from: str | None  # run folder or checkpoint whose weights the training begins with

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        try:
            _genotype(self.genotype)
        except (ValueError, OSError) as error:
            yield str(error)


@dataclass(frozen=True, kw_only=True)
class TrainRun(Run[TrainReading]):
    """A training about to start or to go on.

    Args:
        place: where the genotype works.
    """

    data: LabelledData
    module: TrainModule
    place: Place

    what = "training"
    reading = TrainReading

    @property
    def every(self) -> Path:
        return self.folder.readings

    @property
    def smaller(self) -> str:
        return f"lower network.width than {self.place.size.width}"

    @property
    def identity(self) -> Mapping[str, str]:
        said = identity(self.module.network, Preprocessing.of(self.data.store))
        return said | {"classes": json.dumps(self.data.classes)}

    def images(self, steps: int) -> float:
        return self.data.batch_size * steps

    def announce(self) -> None:
        announce_data(self)
        if shared := self.data.shared:
            log.warning("%s test images are training images as well", f"{shared:,}")
        module, size = self.module, self.place.size
        costs = measure_complexity(module.network.genotype, self.place)
        log.info(
            "a network of width %d and %d cells for %d classes: %.2f M parameters, %.1f M "
            "multiply-adds",
            *(size.width, size.depth, self.place.classes),
            *(costs.params / 1e6, costs.macs / 1e6),
        )
        log.info(
            "%s of %d steps; precision %s",
            *(counted(module.epochs, "epoch"), module.steps_per_epoch),
            self.config["trainer"]["precision"],
        )

    def take(self, earlier: Sequence[TrainReading]) -> TrainReading:  # noqa: ARG002 - no verdict
        judged_by = "validation" if self.data.validates else "test"
        return take_train_reading(self.module, self.data.judged_batches(), judged_by)

    def values(self, reading: TrainReading) -> dict[str, float | str]:
        return {
            "step": reading.step,
            f"{reading.judged_by}_loss": reading.loss,
            f"{reading.judged_by}_top1": reading.top1,
            f"{reading.judged_by}_top5": reading.top5,
        }

    def status(self, row: Mapping[str, float], readings: Sequence[TrainReading]) -> str:
        judged = ""
        if readings:
            judged = f"  {readings[-1].judged_by} {100 * readings[-1].top1:.1f} %"
        return f"loss {row['weight_loss']:.3f}  accuracy {100 * row['accuracy']:.0f} %{judged}"

    def draw(self, readings: Sequence[TrainReading], run_log: RunLog) -> None:
        write_json(self.folder.genotype, self.module.network.genotype.to_dict())
        rows = MetricsTable(self.folder.metrics).rows()
        plot_curves(rows, [reading.to_dict() for reading in readings], self.folder.plots)
        if readings[-1].step >= self.last_step:
            plot_classes(self.tested.confusion.numpy(), self.data.classes, self.folder.plots)
        run_log.drawn(readings[-1], [], self.folder.plots)

    @cached_property
    def tested(self) -> Judgement:
        """On the test images, by the first rank, once the training has ended."""
        with ranks.alone():
            return self.module.judge(self.data.test_batches())

    def results(self) -> dict[str, Any]:
        """On the test images, as records say it."""
        found, confusion = self.tested, self.tested.confusion
        right = confusion.diagonal() / confusion.sum(1).clamp(min=1)
        return {
            "test_top1": found.top1 / found.images,
            "test_top5": found.top5 / found.images,
            "test_loss": found.loss,
            "test_images": found.images,
            "test_top1_by_class": {
                name: share if images else None  # of a class without test images
                for name, share, images in zip(
                    self.data.classes, right.tolist(), confusion.sum(1).tolist(), strict=True
                )
            },
        }

    def record(self, readings: Sequence[TrainReading]) -> dict[str, object]:
        genotype = self.module.network.genotype
        return {
            **self.results(),
            "final": readings[-1].to_dict(),
            "readings": len(readings),
            "costs": asdict(measure_complexity(genotype, self.place)),
            "genotype": genotype.to_dict(),
        }

    def close(self, record: Mapping[str, Any], readings: Sequence[TrainReading]) -> None:
        log.info("%s after %d steps", accuracy_in_words(record), readings[-1].step)
        whole = self.module.length
        if readings[-1].step < whole / 2:
            said = "stopped at %d of %d steps: its accuracy says nothing of the cell"
            log.info(said, readings[-1].step, whole)
        absent = [name for name, share in record["test_top1_by_class"].items() if share is None]
        if absent:
            log.warning("no test images of %s", ", ".join(absent[:5]))
        log.info("network    %s", self.folder.checkpoint)
        log.info("pictures   %s: curves.png, classes.png", self.folder.plots)


def accuracy_in_words(facts: Mapping[str, Any]) -> str:
    """Of `TrainRun.results`."""
    top1, top5 = 100 * facts["test_top1"], 100 * facts["test_top5"]
    also = f" (top 5 {top5:.2f} %)" if len(facts["test_top1_by_class"]) > 5 else ""
    return f"test accuracy {top1:.2f} %{also} of {facts['test_images']:,} images"


def judge(config: Config, broken: Collection[str]) -> list[str]:
    """What constructors refuse and what does not fit together, before any data is read.

    Args:
        config: composed, its names and types checked.
        broken: sections that were found wrong already.
    """
    maker = Maker(config, set(broken))
    source, settings = maker.common(NetworkEfficiency)
    size = maker.make(NetworkSize, "network")
    maker.optimizer("recipe.optimizer")
    recipe = maker.make(Recipe, "recipe")
    side = None if source is None else source.known_side()
    if source is not None and side is not None and size is not None and "" not in maker.broken:
        place = Place(size, source.known_channels() or 1, side, 2)
        maker.hold("genotype", lambda: _shape(config, place))
    maker.problems += batch_problems(config, source, settings)
    if recipe is not None and side is not None and recipe.cutout > side:
        maker.problems.append(
            f"recipe.cutout {recipe.cutout}: may hide a whole image of {side} pixels; 0 is none"
        )
    epochs = config["trainer"].get("max_epochs")
    if recipe is not None and isinstance(epochs, int) and recipe.warmup_epochs >= epochs:
        maker.problems.append(
            f"recipe.warmup_epochs {recipe.warmup_epochs}: must be less than "
            f"trainer.max_epochs={epochs}"
        )
    return maker.problems


LAYOUT = Layout(
    {
        "data": ImageSource,
        "network": NetworkSize,
        "recipe": Recipe,
        "trainer": TrainerSettings,
        "logger": LoggerSettings,
        "efficiency": NetworkEfficiency,
    },
    {"recipe.optimizer": Optimizer},
    TrainRoot,
    judge,
)


def _genotype(text: str) -> Genotype:
    return named_genotype(text, S0())


def _shape(config: Config, place: Place) -> DerivedNetwork:
    """The network without storage: what does not fit is refused."""
    with torch.device("meta"):
        return place.network(_genotype(config["genotype"]))


def prepare(config: Config, folder: RunFolder, console: Console) -> TrainRun:
    """Build everything from a checked configuration; read the data."""
    settings, efficiency, source = common_parts(config, NetworkEfficiency)
    begun = None
    if config["init_from"] and not folder.checkpoint.exists():  # of a run that only begins
        begun = read_checkpoint(checkpoint_in(config["init_from"], "init_from"))
    recipe = build(Recipe, config["recipe"], {}, "recipe")
    data = LabelledData(
        source,
        config["seed"],
        source.batch_size,
        validates=recipe.validates,
        accumulate=settings.accumulate,
        workers=efficiency.workers,
        resident=efficiency.resident,
    )
    data.augmentation = recipe.augmentation
    load(data, config, console)
    size = build(NetworkSize, config["network"], {}, "network")
    place = Place(size, data.channels, data.side, len(data.classes))
    network = place.network(_genotype(config["genotype"]))
    if begun is not None:
        seen = start_from(network, begun, Path(config["init_from"]), data.channels)
        mine = Preprocessing.of(data.store)
        if (seen.side, seen.dtype) != (mine.side, mine.dtype):
            said = "init_from: those weights saw images of %d pixels of %s, these are of %d of %s"
            log.warning(said, seen.side, seen.dtype, mine.side, mine.dtype)
    steps = data.steps_per_epoch
    module = TrainModule(network, recipe, settings.epochs(steps), steps, efficiency.compile)
    last_step = ready(module, settings)
    return TrainRun(
        config=config,
        folder=folder,
        settings=settings,
        data=data,
        module=module,
        place=place,
        last_step=last_step,
    )
