"""Configuration to objects: everything that a search is made of, wired once."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.progress import Progress

from mae_nas.backbone import BackbonePlan
from mae_nas.cli.build import build, prefixed
from mae_nas.data import ImageSource, SearchData
from mae_nas.decoders import Decoder
from mae_nas.masking import Masking
from mae_nas.objectives import Objective, Reconstruction
from mae_nas.relaxations import Relaxation
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.trainer import Efficiency, TrainerSettings
from mae_nas.search import BilevelSettings, SearchModule
from mae_nas.spaces import SearchSpace
from mae_nas.supernet import ReferenceCell, Supernet, SupernetSize

Config = Mapping[str, Any]
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
    """Build everything, the cheap parts first: what cannot fit is said before any data is read."""
    settings = build(TrainerSettings, config["trainer"], {}, "trainer")
    efficiency = build(Efficiency, config["efficiency"], {}, "efficiency")
    if efficiency.threads != "auto":
        torch.set_num_threads(efficiency.threads)
    source = build(ImageSource, config["data"], {}, "data")
    assemble(config, source.known_side() or roomy_side(config), source.known_channels() or 1)
    data = SearchData(
        source,
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


def assemble(config: Config, side: int, channels: int) -> Parts:
    """Space, plan, masking, decoder and objective; one ValueError with a line per misfit."""
    problems: list[str] = []

    @contextmanager
    def collecting(node: str) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            problems.append(prefixed(node, str(error)))

    space = build(SearchSpace, config["space"], {}, "space")
    masking = build(Masking, config["mask"], {}, "mask")
    with collecting("mask"):
        masking.patches(side)
    with collecting("supernet"):
        plan = build(SupernetSize, config["supernet"], {}, "supernet").plan(space, side)
        facts = {"features": plan.features, "channels": channels, "side": side}
        facts |= {"masking": masking, "space": space}
        with collecting("decoder"):
            decoder = build(Decoder, config["decoder"], facts, "decoder")
    if problems:
        raise ValueError("\n".join(problems))
    objective = build(Objective, config["objective"], {**facts, "decoder": decoder}, "objective")
    is_null_arm = isinstance(objective, Reconstruction) and objective.target == "permuted"
    if is_null_arm and config["trainer"]["accumulate"] > 1:
        raise ValueError(
            "objective.target=permuted takes the target from the same micro-batch, so it needs "
            "trainer.accumulate=1"
        )
    return Parts(space, plan, masking, objective)


def roomy_side(config: Config) -> int:
    """A side that patches and strides divide, to judge the rest by until the data's is known."""
    patch = config["mask"]["patch_size"]
    return 7 * math.lcm(32, patch) if isinstance(patch, int) and patch > 0 else 224


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
