"""Configuration to objects: everything that a search is made of, wired once."""

import inspect
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.optim import Optimizer

from mae_nas.backbone import BackbonePlan, FeatureInfo, plan_backbone
from mae_nas.checks import raise_all
from mae_nas.cli.build import build, import_target, part, refusals
from mae_nas.cli.run import Config
from mae_nas.data import ImageSource, ImageStore, StepData
from mae_nas.data.source import Progress as OnProgress
from mae_nas.decoders import Decoder
from mae_nas.masking import Masking, synchronise
from mae_nas.objectives import Objective
from mae_nas.relaxations import Relaxation
from mae_nas.runs.loggers import LoggerSettings
from mae_nas.runs.progress import LINE_SECONDS
from mae_nas.runs.trainer import Efficiency, Means, TrainerSettings, automatic_precision
from mae_nas.search import BilevelSettings
from mae_nas.search.optimizers import check_unrollable, make_fused
from mae_nas.spaces import SearchSpace
from mae_nas.stepping import StepModule
from mae_nas.supernet import SupernetSize

log = logging.getLogger("mae_nas")

Part = TypeVar("Part")
AnyMeans = TypeVar("AnyMeans", bound=Means)
NODES: Mapping[str, type] = {
    "data": ImageSource,
    "space": SearchSpace,
    "relaxation": Relaxation,
    "objective": Objective,
    "decoder": Decoder,
    "mask": Masking,
    "trainer": TrainerSettings,
    "logger": LoggerSettings,
    "efficiency": Efficiency,
    "supernet": SupernetSize,
    "search": BilevelSettings,
}
"""Sections of the configuration, each a class with arguments, and what the class must be."""
OPTIMIZERS: Mapping[str, type] = {
    "search.weight_optimizer": Optimizer,
    "search.arch_optimizer": Optimizer,
}


@dataclass(frozen=True)
class Parts:
    """What is built from the configuration and two facts of the data, side and channels."""

    space: SearchSpace
    plan: BackbonePlan
    masking: Masking
    objective: Objective
    relaxation: Relaxation


def settle_precision(config: Config) -> None:
    """Put what `trainer.precision=auto` is here in its place, before it is stored."""
    trainer = config["trainer"]
    if trainer.get("precision") == "auto":
        trainer["precision"] = automatic_precision(trainer.get("accelerator", "auto"))


class Common(NamedTuple, Generic[AnyMeans]):
    """What every run begins with."""

    settings: TrainerSettings
    efficiency: AnyMeans
    source: ImageSource


def common_parts(config: Config, means: type[AnyMeans]) -> Common[AnyMeans]:
    """Built from a checked configuration; torch has the threads that it says from here on."""
    settings = build(TrainerSettings, config["trainer"], {}, "trainer")
    efficiency = build(means, config["efficiency"], {}, "efficiency")
    if efficiency.threads != "auto":
        torch.set_num_threads(efficiency.threads)
    return Common(settings, efficiency, build(ImageSource, config["data"], {}, "data"))


def load(data: StepData, config: Config, console: Console, store: ImageStore | None = None) -> None:
    """Read the images, unless `store` holds them; then random weights are the seed's."""
    with progress(console, "reading images") as on_progress:
        data.load(on_progress, store)
    pl.seed_everything(config["seed"], workers=False, verbose=False)


def ready(module: StepModule, settings: TrainerSettings) -> int:
    """Make the module as wide and as synchronised as the settings say; where the run ends."""
    if settings.precision == "64-true":
        # Before a checkpoint is loaded into it: Lightning widens the module only afterwards.
        module.double()
    if settings.sync_batchnorm:
        synchronise(module)
    return min(module.length, settings.max_steps or module.length)


@contextmanager
def progress(console: Console, what: str) -> Iterator[OnProgress]:
    """What is told (done, total): a bar on a terminal, elsewhere a line every ten seconds."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task, last = bar.add_task(what, total=None), time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal last
            bar.update(task, completed=done, total=total)
            if not console.is_terminal and time.monotonic() - last >= LINE_SECONDS:
                last = time.monotonic()
                log.info("%s: %s of %s", what, f"{done:,}", f"{total:,}")

        yield show


def judge(config: Config, broken: Collection[str]) -> list[str]:
    """What constructors refuse and what does not fit together, before any data is read.

    Args:
        config: composed, its names and types checked.
        broken: sections that were found wrong already and are not built, nor is what needs them.
    """
    maker = Maker(config, set(broken))
    source, settings = maker.common(Efficiency)
    optimizers = {path: maker.optimizer(path) for path in OPTIMIZERS}
    bilevel = maker.make(BilevelSettings, "search")
    optimizer = optimizers.get("search.weight_optimizer")
    if bilevel is not None and bilevel.second_order and optimizer is not None:
        maker.hold("search", lambda: check_unrollable(optimizer))
    side = None if source is None else source.known_side()
    assemble(maker, side, (source and source.known_channels()) or 1)
    if "genotype" in config and config["relaxation"].get("genotype") != config["genotype"]:
        maker.problems.append("relaxation.genotype: leave it out, and give genotype=…")
    return [*maker.problems, *batch_problems(config, source, settings)]


def batch_problems(
    config: Config, source: ImageSource | None, settings: TrainerSettings | None
) -> Iterator[str]:
    """A line where batches cannot be shared out as `settings` say."""
    if source is None or settings is None:
        return
    if source.batch_size % settings.parts:
        yield (
            f"data.batch_size {source.batch_size}: must be a multiple of {settings.parts}, "
            "trainer.accumulate × trainer.devices × trainer.num_nodes"
        )
    is_null_arm = config.get("objective", {}).get("target") == "permuted"
    if is_null_arm and (settings.parts > 1 or settings.fit_batch or source.batch_size < 2):
        yield (
            "objective.target=permuted takes the target from the same micro-batch, so it needs "
            "trainer.accumulate=1, trainer.fit_batch=false, one device and data.batch_size of "
            "2 or more"
        )


@dataclass
class Maker:
    """Builds sections and remembers what is wrong with them, instead of stopping at the first.

    Args:
        config: composed.
        broken: sections that are not to be built.
    """

    config: Config
    broken: set[str] = field(default_factory=set)
    facts: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def make(self, kind: type[Part], section: str) -> Part | None:
        """The section's object, or None if it is broken or asks for a fact not known yet."""
        if section in self.broken:
            return None
        asked = inspect.signature(import_target(self.config[section]["_target_"])).parameters
        if any(name in asked and fact is None for name, fact in self.facts.items()):
            return None
        return self.hold(section, lambda: build(kind, self.config[section], self.facts, section))

    def common(self, means: type[Means]) -> tuple[ImageSource | None, TrainerSettings | None]:
        """What every run has: images and trainer, if they can be; also means and loggers."""
        source = self.make(ImageSource, "data")
        settings = self.make(TrainerSettings, "trainer")
        self.make(means, "efficiency")
        self.make(LoggerSettings, "logger")
        return source, settings

    def optimizer(self, path: str) -> Optimizer | None:
        """The optimizer at SECTION.NAME, of no weight that matters."""
        section, _, name = path.rpartition(".")
        if section in self.broken:
            return None
        make, weights = part(self.config[section][name]), [nn.Parameter(torch.zeros(1))]
        return self.hold(path, lambda: make_fused(make, weights))

    def hold(self, section: str, attempt: Callable[[], Part]) -> Part | None:
        """What `attempt` gives, or None if it is refused."""
        try:
            return attempt()
        except (ValueError, TypeError, RuntimeError) as error:
            self.problems += refusals(section, error)
            self.broken.add(section)
            return None


def assemble(maker: Maker, side: int | None, channels: int) -> Parts | None:
    """Space, plan, masking, decoder, objective and relaxation, or None if anything is wrong.

    Args:
        maker: of the sections; its problems say what is wrong.
        side: of the images, in pixels; None if it is not known yet: what depends on it is neither
            judged nor built.
        channels: of the images.
    """
    facts = maker.facts
    facts |= {"channels": channels, "side": side}
    space = facts["space"] = maker.make(SearchSpace, "space")
    if space is not None:
        maker.hold("space", lambda: raise_all(space.problems()))
    size, plan = maker.make(SupernetSize, "supernet"), None
    if space is not None and size is not None:
        plan = maker.hold("supernet", lambda: size.plan(space, side))
    masked = assemble_masked(maker, plan and plan.features)
    relaxation = None if "space" in maker.broken else maker.make(Relaxation, "relaxation")
    if space is None or plan is None or masked is None or relaxation is None:
        return None
    return Parts(space, plan, *masked, relaxation)


def assemble_masked(
    maker: Maker, features: Sequence[FeatureInfo] | None
) -> tuple[Masking, Objective] | None:
    """Masking, decoder and objective of an encoder, or None if anything is wrong.

    Args:
        maker: of the sections; its facts hold `side` and `channels`.
        features: of the encoder; None if they are not known.
    """
    facts = maker.facts
    masking, side = maker.make(Masking, "mask"), facts["side"]
    facts["masking"] = masking
    if masking is not None and isinstance(side, int):
        maker.hold("mask", lambda: masking.patches(side))
    # A decoder's own mistakes are told whatever the features turn out to be.
    facts["features"] = features or plan_backbone(16, 8, "cifar").features
    facts["decoder"] = maker.make(Decoder, "decoder")
    if features is None or side is None or {"space", "mask", "decoder"} & maker.broken:
        return None
    objective = maker.make(Objective, "objective")
    return None if masking is None or objective is None else (masking, objective)
