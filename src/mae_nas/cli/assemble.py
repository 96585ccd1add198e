"""Configuration to objects: everything that a search is made of, wired once."""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.progress import Progress
from torch.optim import Optimizer

from mae_nas.backbone import BackbonePlan, plan_backbone, stem_for
from mae_nas.checks import raise_all
from mae_nas.cli.build import build, prefixed
from mae_nas.data import ImageSource, SearchData, Synthetic
from mae_nas.decoders import Decoder, HierarchicalDecoder
from mae_nas.masking import Masking
from mae_nas.objectives import Objective, Reconstruction
from mae_nas.relaxations import Relaxation
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.trainer import Efficiency, LoggerSettings, TrainerSettings
from mae_nas.search import BilevelSettings, SearchModule
from mae_nas.spaces import S0, SearchSpace
from mae_nas.supernet import ReferenceCell, Supernet, SupernetSize

Config = Mapping[str, Any]
Part = TypeVar("Part")
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
MOST_YARDSTICK_VALUES = 2**26


@dataclass(frozen=True)
class Parts:
    """What is built from the configuration and two facts of the data, side and channels."""

    space: SearchSpace
    plan: BackbonePlan
    masking: Masking
    objective: Objective


@dataclass(frozen=True)
class Run:
    """A search about to start or to go on."""

    config: Config
    folder: RunFolder
    settings: TrainerSettings
    data: SearchData
    parts: Parts
    module: SearchModule
    yardsticks: dict[str, float]


def prepare(config: Config, folder: RunFolder, console: Console) -> Run:
    """Read the data and build everything from a checked configuration."""
    settings = build(TrainerSettings, config["trainer"], {}, "trainer")
    efficiency = build(Efficiency, config["efficiency"], {}, "efficiency")
    if efficiency.threads != "auto":
        torch.set_num_threads(efficiency.threads)
    data = SearchData(
        build(ImageSource, config["data"], {}, "data"),
        config["seed"],
        settings.batch_size,
        settings.accumulate,
        efficiency.workers,
        efficiency.resident,
    )
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading images", total=None)
        data.load(lambda done, total: bar.update(task, completed=done, total=total))
    pl.seed_everything(config["seed"], workers=False, verbose=False)
    parts = assemble(config, data.side, data.channels)
    module = SearchModule(
        build(Relaxation, config["relaxation"], {"space": parts.space}, "relaxation"),
        Supernet(parts.space, data.channels, parts.objective.stages, parts.plan, ReferenceCell),
        parts.objective,
        build(BilevelSettings, config["search"], {}, "search"),
        settings.epochs(data.steps_per_epoch),
        data.steps_per_epoch,
    )
    return Run(config, folder, settings, data, parts, module, yardsticks(parts, data))


def misfits(config: Config, broken: Collection[str]) -> list[str]:
    """What does not fit together as far as is known before any data is read, a line each.

    Args:
        config: composed.
        broken: sections that were found wrong already; the rest is judged as if they were right.
    """
    source = Synthetic() if "data" in broken else build(ImageSource, config["data"], {}, "data")
    # Until the data's is known, a side that patches and strides divide.
    patch = 8 if "mask" in broken else config["mask"]["patch_size"]
    side = source.known_side() or 7 * math.lcm(32, patch)
    try:
        assemble(config, side, source.known_channels() or 1, broken)
    except ValueError as error:
        return str(error).splitlines()
    return []


def assemble(config: Config, side: int, channels: int, broken: Collection[str] = ()) -> Parts:
    """Space, plan, masking, decoder and objective; one ValueError with a line per misfit.

    Args:
        config: composed and checked.
        side: of the images, in pixels.
        channels: of the images.
        broken: sections to take the defaults for, so that the others can be judged.
    """
    problems: list[str] = []

    def part(section: str, make: Callable[[], Part], default: Callable[[], Part]) -> Part:
        if section not in broken:
            try:
                return make()
            except ValueError as error:
                problems.extend(prefixed(section, line) for line in str(error).splitlines())
        return default()

    def made(kind: type[Part], section: str) -> Part:
        return build(kind, config[section], facts, section)

    def fitting_mask() -> Masking:
        masking = made(Masking, "mask")
        masking.patches(side)
        return masking

    facts: dict[str, object] = {"channels": channels, "side": side}
    space = facts["space"] = part("space", lambda: made(SearchSpace, "space"), S0)
    masking = facts["masking"] = part("mask", fitting_mask, lambda: Masking(patch_size=1))
    plan = part(
        "supernet",
        lambda: made(SupernetSize, "supernet").plan(space, side),
        lambda: plan_backbone(16, 8, stem_for(side)),
    )
    features = facts["features"] = plan.features
    facts["decoder"] = part(
        "decoder",
        lambda: made(Decoder, "decoder"),
        lambda: HierarchicalDecoder(features, channels),
    )
    raise_all(problems)
    objective = made(Objective, "objective")
    is_null_arm = isinstance(objective, Reconstruction) and objective.target == "permuted"
    if is_null_arm and config["trainer"]["accumulate"] > 1:
        raise ValueError(
            "objective.target=permuted takes the target from the same micro-batch, so it needs "
            "trainer.accumulate=1"
        )
    return Parts(space, plan, masking, objective)


def yardsticks(parts: Parts, data: SearchData) -> dict[str, float]:
    """Of the objective, on as many held-out images as fit in memory beside the search."""
    batches, values = [], 0
    for batch in data.held_out_batches():
        batches.append(batch)
        values += batch.image.numel()
        if values > MOST_YARDSTICK_VALUES:
            break
    return parts.objective.yardsticks(batches)


def data_hash(data: SearchData) -> str:
    """Tells whether a run continues on the images it began with."""
    facts = {k: v for k, v in data.describe().items() if k not in ("cache", "resident")}
    text = json.dumps([facts, data.store.files], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
