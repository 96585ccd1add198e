"""The composition root of `mae-nas search`: configuration in, run folder and exit code out."""

import hashlib
import json
import logging
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.progress import Progress

from mae_nas.backbone import BackbonePlan
from mae_nas.cli.build import build, import_target
from mae_nas.cli.codes import COLLAPSED, DONE, FAILED, INTERRUPTED, REQUEUE
from mae_nas.data import ImageSource, SearchData
from mae_nas.masking import Masking
from mae_nas.objectives import Objective, Reconstruction
from mae_nas.relaxations import Relaxation
from mae_nas.runs.callbacks import (
    Checkpoints,
    Clock,
    Metrics,
    Readings,
    StopOnSignal,
    verdict_line,
)
from mae_nas.runs.checkpoint import check_fits, read_checkpoint
from mae_nas.runs.files import write_json
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.measure import peak_memory
from mae_nas.runs.pictures import Pictures
from mae_nas.runs.progress import ProgressReport
from mae_nas.runs.records import (
    describe_device,
    git_state,
    network_costs,
    search_record,
    versions,
)
from mae_nas.runs.resume import config_hash
from mae_nas.runs.trainer import Efficiency, LoggerSettings, TrainerSettings, reading_interval
from mae_nas.search import BilevelSettings, NonFiniteLossError, SearchModule, take_reading
from mae_nas.spaces import SearchSpace
from mae_nas.supernet import Supernet, SupernetSize

log = logging.getLogger("mae_nas")

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
    efficiency: Efficiency
    data: SearchData
    parts: Parts
    module: SearchModule
    yardsticks: dict[str, float]


def run_search(
    config: Config, overrides: list[str], folder: RunFolder, checkpoint: Path | None
) -> int:
    """Search, from a checked configuration to summary.json.

    Args:
        config: composed and checked.
        overrides: as the user gave them, for the record.
        folder: of the run, locked by this process.
        checkpoint: to continue from; None for a new run.

    Returns:
        The exit code, see `mae_nas.cli.codes`.

    Raises:
        ValueError: the parts do not fit each other, the data or the checkpoint.
    """
    console = Console(soft_wrap=True)
    with logging_to(folder.log, console):
        run = prepare(config, folder, console)
        identity = {"config_hash": config_hash(config), "data_hash": data_hash(run.data)}
        if checkpoint is not None:
            check_fits(read_checkpoint(checkpoint), run.module.state_dict(), identity, checkpoint)
        announce(run)

        clock, stopper = Clock(), StopOnSignal()
        readings = make_readings(run, clock)
        last_step = readings.last_step
        beside = [
            clock,
            Metrics(folder, run.settings.log_every, clock),
            stopper,
            readings,
            Checkpoints(
                folder, run.settings.checkpoint_seconds, readings, config["seed"], identity
            ),
            ProgressReport(last_step, clock, readings, console),
        ]
        loggers = cast("LoggerSettings", build(config["logger"], {}, "logger"))
        trainer = run.settings.make(
            last_step, beside, loggers.loggers(folder.path, config["name"]), folder.path
        )
        code = fit(trainer, run, checkpoint)
        if code == DONE:
            device = trainer.strategy.root_device
            run.module.to(device)  # Lightning leaves it on the CPU
            readings.settle()
            code = stop_code(stopper, readings)
            finish(run, overrides, readings, clock, device)
        loggers.close(code)
        return code


def prepare(config: Config, folder: RunFolder, console: Console) -> Run:
    """Build everything, the cheap parts first: what cannot fit is said before any data is read."""
    settings = cast("TrainerSettings", build(config["trainer"], {}, "trainer"))
    efficiency = cast("Efficiency", build(config["efficiency"], {}, "efficiency"))
    source = cast("ImageSource", build(config["data"], {}, "data"))
    side, channels = source.known_side(), source.known_channels()
    if side is not None:
        assemble(config, side, channels or 1)
    data = SearchData(
        source,
        config["seed"],
        settings.batch_size,
        settings.accumulate,
        efficiency.workers,
        efficiency.resident,
    )
    load(data, console)
    pl.seed_everything(config["seed"], workers=False, verbose=False)
    parts = assemble(config, data.side, data.channels)
    relaxation = build(config["relaxation"], {"space": parts.space}, "relaxation")
    module = SearchModule(
        cast("Relaxation", relaxation),
        Supernet(parts.space, data.channels, parts.objective.stages, parts.plan, efficiency.cell),
        parts.objective,
        bilevel_settings(config["search"]),
        settings.epochs(data.steps_per_epoch),
        data.steps_per_epoch,
    )
    return Run(config, folder, settings, efficiency, data, parts, module, yardsticks(parts, data))


def assemble(config: Config, side: int, channels: int) -> Parts:
    """Space, plan, masking, decoder and objective; one ValueError with a line per misfit."""
    problems: list[str] = []

    @contextmanager
    def collecting(node: str = "") -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            problems.append(f"{node}: {error}" if node else str(error))

    space = cast("SearchSpace", build(config["space"], {}, "space"))
    masking = cast("Masking", build(config["mask"], {}, "mask"))
    with collecting("mask"):
        masking.patches(side)
    with collecting("supernet"):
        size = cast("SupernetSize", build(config["supernet"], {}))
        plan = size.plan(space, side)
        facts = {"features": plan.features, "channels": channels, "side": side}
        facts |= {"masking": masking, "space": space}
    if problems:
        raise ValueError("\n".join(problems))
    decoder = build(config["decoder"], facts, "decoder")
    objective = build(config["objective"], {**facts, "decoder": decoder}, "objective")
    is_null_arm = isinstance(objective, Reconstruction) and objective.target == "permuted"
    if is_null_arm and config["trainer"]["accumulate"] > 1:
        raise ValueError(
            "objective.target=permuted takes the target from the same micro-batch, so it needs "
            "trainer.accumulate=1"
        )
    return Parts(space, plan, masking, cast("Objective", objective))


def bilevel_settings(node: Mapping[str, Any]) -> BilevelSettings:
    """The two optimizers as makers, and the rest as it stands."""
    makers = {
        name: partial(import_target(node[name]["_target_"]), **_arguments(node[name]))
        for name in ("weight_optimizer", "arch_optimizer")
    }
    return cast("BilevelSettings", build({**node, **makers}, {}, "search"))


def load(data: SearchData, console: Console) -> None:
    """Decode or read the images, with a bar where a person watches."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading images", total=None)
        data.load(lambda done, total: bar.update(task, completed=done, total=total))


def yardsticks(parts: Parts, data: SearchData) -> dict[str, float]:
    """Of the objective, on as many held-out images as fit in memory beside the search."""
    batches, values = [], 0
    for batch in data.held_out_batches():
        batches.append(batch)
        values += batch.image.numel()
        if values > MOST_YARDSTICK_VALUES:
            break
    return parts.objective.yardsticks(batches)


def announce(run: Run) -> None:
    """What is about to be done, in a few lines."""
    facts, masking = run.data.describe(), run.parts.masking
    log.info(
        "%s images of %d × %d, %d channels: %s for weights, %s for architecture, %s held out",
        *(facts["images"], facts["side"], facts["side"], facts["channels"]),
        *(facts["weights"], facts["architecture"], facts["held_out"]),
    )
    skipped = cast("list[dict[str, str]]", facts["skipped_files"])
    for entry in skipped[:5]:
        log.warning("skipped %s: %s", entry["file"], entry["reason"])
    if len(skipped) > 5:
        log.warning("… and %d more, named in summary.json", len(skipped) - 5)
    log.info(
        "mask ratio %g (%g in whole patches of %d × %d), %s; %d epochs of %d steps",
        *(masking.ratio, masking.effective_ratio(run.data.side)),
        *(masking.patch_size, masking.patch_size, masking.mode),
        *(run.module.epochs, run.module.steps_per_epoch),
    )
    if run.yardsticks:
        known = ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in run.yardsticks.items())
        log.info("loss of predictors that learn nothing: %s", known)


def make_readings(run: Run, clock: Clock) -> Readings:
    """The readings of this search and their pictures."""
    pictures = Pictures(run.folder, run.parts.space, run.module, run.data, run.yardsticks)
    total = run.module.epochs * run.module.steps_per_epoch
    held_out = run.data.held_out_batches
    return Readings(
        run.folder,
        lambda earlier: take_reading(run.module, run.parts.space, held_out(), earlier),
        pictures.draw,
        clock,
        interval=reading_interval(total),
        last_step=min(total, run.settings.max_steps or total),
        stop_on_collapse=run.config["on_collapse"] == "stop",
    )


def fit(trainer: pl.Trainer, run: Run, checkpoint: Path | None) -> int:
    """Train; what can go wrong on the way is one line and an exit code."""
    try:
        trainer.fit(run.module, datamodule=run.data, ckpt_path=checkpoint, weights_only=True)
    except torch.OutOfMemoryError:
        log.error(
            "out of memory on %s at trainer.batch_size=%d: trainer.accumulate=%d computes the same "
            "batch in smaller parts; supernet.width=%d is the smaller network",
            *(trainer.strategy.root_device, run.settings.batch_size),
            *(2 * run.settings.accumulate, run.parts.plan.width // 2),
        )
        return FAILED
    except (NonFiniteLossError, OSError) as error:
        log.error("%s", error)
        return FAILED
    except SystemExit:  # Lightning's answer to a second Ctrl-C
        log.error("stopped at once; resume=auto continues from %s", run.folder.checkpoint)
        return INTERRUPTED
    return DONE


def stop_code(stopper: StopOnSignal, readings: Readings) -> int:
    """The exit code of a search that ended in order."""
    if stopper.received is not None and not readings.is_complete:
        return REQUEUE if stopper.received == signal.SIGTERM else INTERRUPTED
    return COLLAPSED if readings.has_stopped_search else DONE


def finish(
    run: Run, overrides: list[str], readings: Readings, clock: Clock, device: torch.device
) -> None:
    """Write the record, and say where everything is and what the verdict is."""
    data, masking = run.data.describe(), run.parts.masking
    record = {
        "name": run.config["name"],
        "state": "finished" if readings.is_complete else "stopped",
        **search_record(readings.readings, run.folder, run.parts.space),
        "seed": run.config["seed"],
        "device": describe_device(device),
        "wall_seconds": clock.total,
        "images_per_second": 2 * run.settings.batch_size / clock.seconds_per_step,
        "waiting_share": clock.waiting_share,
        "peak_memory_bytes": peak_memory(device),
        "backend": run.efficiency.backend,
        "yardsticks": run.yardsticks,
        "mask_ratio": {
            "nominal": masking.ratio,
            "effective": masking.effective_ratio(run.data.side),
        },
        "costs": network_costs(run.module, run.data),
        "skipped_files": data.pop("skipped_files"),
        "data": data,
        "epochs": run.module.epochs,
        "steps_per_epoch": run.module.steps_per_epoch,
        "overrides": overrides,
        "config": run.config,
        "config_hash": config_hash(run.config),
        "git": git_state(),
        "versions": versions(),
    }
    write_json(run.folder.summary, record)
    last = readings.readings[-1]
    log.info("%s", verdict_line(last))
    log.info("held-out loss %.4f after %d steps", last.held_out_loss, last.step)
    log.info("genotype   %s", run.folder.genotype)
    log.info("pictures   %s", run.folder.plots)
    log.info("summary    %s", run.folder.summary)
    if not readings.is_complete:
        log.info("to go on   the same command with resume=auto hydra.run.dir=%s", run.folder.path)


def data_hash(data: SearchData) -> str:
    """Tells whether a run continues on the images it began with."""
    facts = {k: v for k, v in data.describe().items() if k not in ("cache", "resident")}
    text = json.dumps([facts, data.store.files], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@contextmanager
def logging_to(path: Path, console: Console) -> Iterator[None]:
    """Messages go plain to the terminal and with timestamps to `path`."""
    to_file = logging.FileHandler(path)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    to_console = ConsoleHandler(console)
    captured = logging.getLogger("py.warnings")
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.captureWarnings(True)
    for logger in (log, captured):
        logger.addHandler(to_file)
    log.addHandler(to_console)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger in (log, captured):
            logger.removeHandler(to_file)
        log.removeHandler(to_console)
        to_file.close()


class ConsoleHandler(logging.Handler):
    """Prints through rich, so that lines and the progress bar do not disturb each other."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:  # noqa: D102
        self.console.print(record.getMessage(), markup=False, highlight=False)


def _arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "_target_"}
