"""`mae-nas search`: what happens from a checked configuration to the exit code."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from rich.console import Console

from mae_nas.cli import launch
from mae_nas.cli.assemble import Config, Run, data_hash, prepare
from mae_nas.cli.build import build
from mae_nas.cli.codes import COLLAPSED, DONE, FAILED, stopped_by
from mae_nas.cli.logs import logging_to
from mae_nas.cli.preflight import out_of_memory, preflight
from mae_nas.ranks import RanksDifferError
from mae_nas.runs.callbacks import (
    Checkpoints,
    Clock,
    Gallery,
    Metrics,
    ReadingRows,
    Readings,
    StopOnSignal,
    verdict_line,
)
from mae_nas.runs.checkpoint import check_fits, read_checkpoint
from mae_nas.runs.files import write_json
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.loggers import LoggerSettings, RunLog, start_log
from mae_nas.runs.measure import is_out_of_memory, peak_memory
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
from mae_nas.runs.tables import JsonLines, MetricsTable
from mae_nas.runs.trainer import reading_interval
from mae_nas.runs.watch import RankWatch
from mae_nas.search import NonFiniteLossError, Reading, take_reading
from mae_nas.search.reading import edge_rows, reading_row
from mae_nas.stopping import Stopper

log = logging.getLogger("mae_nas")


def run_search(
    config: Config,
    overrides: list[str],
    folder: RunFolder,
    checkpoint: Path | None,
    stopper: Stopper,
) -> int:
    """Search, from a checked configuration to summary.json; on every rank, the first one writes.

    Args:
        config: composed and checked.
        overrides: as the user gave them, for the record.
        folder: of the run, locked by the first rank's process.
        checkpoint: to continue from; None for a new run.
        stopper: that signals go to.

    Returns:
        The exit code, see `mae_nas.cli.codes`.

    Raises:
        ValueError: the parts do not fit each other, the data or the checkpoint.
    """
    is_first = launch.is_first(config)
    console = Console(soft_wrap=True, quiet=not is_first)
    with logging_to(folder.log, console) if is_first else nullcontext():
        run = prepare(config, folder, console)
        identity = {"config_hash": config_hash(config), "data_hash": data_hash(run.data)}
        step = 0 if checkpoint is None else step_of(checkpoint, run, identity)
        if is_first:
            announce(run)
            run = measured(run, step, overrides)
            identity["config_hash"] = config_hash(run.config)

        clock, stopping, readings = Clock(), StopOnSignal(stopper), make_readings(run)
        origin = {"overrides": overrides, "git": git_state(), "versions": versions()}
        seconds, seed = run.settings.checkpoint_seconds, config["seed"]
        checkpoints = Checkpoints(folder, seconds, readings, seed, identity)
        run_log, record, code = RunLog(), {}, FAILED
        if is_first:
            settings = build(LoggerSettings, config["logger"], {}, "logger")
            run_log = start_log(settings, folder, run.config, step, earlier_rows(run, step))
        try:
            gallery = Gallery(drawing(run, run_log), readings, clock)
            beside = [clock, stopping, readings, checkpoints]
            if is_first:
                metrics = Metrics(folder, run.settings.log_every, clock, run_log)
                rows = ReadingRows(readings, run.parts.space, run_log)
                progress = ProgressReport(readings.last_step, clock, readings, console)
                beside = [clock, metrics, stopping, readings, rows, checkpoints, gallery, progress]
                if run.settings.ranks > 1:
                    beside.append(RankWatch(lambda line: record_failure(run, line)))
            trainer = run.settings.make(readings.last_step, beside, folder.path)
            with recorded(run) if is_first else nullcontext():
                with launch.left(run.config, folder.path, checkpoint):
                    code = fit(trainer, run, checkpoint, stopper)
                if code == DONE and is_first:
                    device = trainer.strategy.root_device
                    run.module.to(device)  # Lightning leaves it on the CPU
                    gallery.settle()
                    code = stop_code(stopping, readings)
                    record = finish(run, origin, readings, clock, device)
        finally:
            run_log.close(record, code)
        return code


def step_of(checkpoint: Path, run: Run, identity: Mapping[str, str]) -> int:
    """The step that a checkpoint continues from; ValueError unless the run can."""
    saved = read_checkpoint(checkpoint)
    check_fits(saved, run.module.state_dict(), identity, checkpoint)
    step = saved["global_step"]
    if step >= run.last_step and not run.folder.genotype.exists():
        raise ValueError(f"trainer.max_steps: the run is at step {step} already; raise it")
    return step


def measured(run: Run, step: int, overrides: list[str]) -> Run:
    """The run from `step` on, its cost known where wanted; stored anew if that changed it."""
    if not run.settings.preflight or step >= run.last_step:
        return run
    try:
        ready = preflight(run, run.last_step - step, may_fit=step == 0)
    except RuntimeError as error:
        line = told(error, run)
        if line is None:
            raise
        raise ValueError(line) from error
    if ready.config != run.config:
        run.folder.write_config(ready.config, overrides)
    return ready


def announce(run: Run) -> None:
    """What is about to be done, in a few lines."""
    if run.config["left_out"]:
        log.warning("not the whole experiment: %s", "; ".join(run.config["left_out"]))
    facts, masking = run.data.describe(), run.parts.masking
    log.info(
        "%s images of %d × %d, %d channels: %s for weights, %s for architecture, %s held out",
        *(facts["images"], facts["side"], facts["side"], facts["channels"]),
        *(facts["weights"], facts["architecture"], facts["held_out"]),
    )
    skipped = cast("list[dict[str, str]]", facts["skipped_files"])
    for entry in skipped[:5]:
        log.warning("skipped %s: %s", entry["file"], entry["reason"])
    if skipped:
        log.warning("%d files skipped; summary.json names them all", len(skipped))
    log.info(
        "mask ratio %g (%g in whole patches of %d × %d), %s; %d epochs of %d steps; precision %s",
        *(masking.ratio, masking.effective_ratio(run.data.side)),
        *(masking.patch_size, masking.patch_size, masking.mode),
        *(run.module.epochs, run.module.steps_per_epoch, run.config["trainer"]["precision"]),
    )
    if run.yardsticks:
        log.info("loss of predictors that learn nothing: %s", yardstick_words(run.yardsticks))


def yardstick_words(yardsticks: Mapping[str, float]) -> str:
    """Yardsticks as "constant 0.842, visible mean 0.714"."""
    return ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in yardsticks.items())


def make_readings(run: Run) -> Readings:
    """The readings of this search."""

    def take(earlier: Sequence[Reading]) -> Reading:
        held_out = run.data.held_out_batches()
        reading = take_reading(run.module, run.parts.space, held_out, earlier)
        run.module.check_finite(run.config["seed"])  # a bad genotype never replaces a good one
        return reading

    return Readings(
        run.folder,
        take,
        interval=reading_interval(run.module.epochs * run.module.steps_per_epoch),
        last_step=run.last_step,
        stop_on_collapse=run.config["on_collapse"] == "stop",
    )


def earlier_rows(run: Run, step: int) -> list[dict[str, Any]]:
    """What the run's log was told up to `step`, by earlier processes."""
    table = MetricsTable(run.folder.metrics).rows()
    rows: list[dict[str, Any]] = [{k: float(v) for k, v in row.items() if v} for row in table]
    readings = map(Reading.from_dict, JsonLines(run.folder.genotypes).rows())
    rows += [reading_row(reading, run.parts.space) for reading in readings]
    return sorted((row for row in rows if row["step"] <= step), key=lambda row: row["step"])


def drawing(run: Run, run_log: RunLog) -> Callable[[list[Reading]], None]:
    """Draws the run's pictures and hands them to its log."""
    pictures = Pictures(run.folder, run.parts.space, run.module, run.data, run.yardsticks)

    def draw(readings: list[Reading]) -> None:
        pictures.draw(readings)
        run_log.drawn(readings[-1], edge_rows(readings[-1], run.parts.space), run.folder.plots)

    return draw


def fit(trainer: pl.Trainer, run: Run, checkpoint: Path | None, stopper: Stopper) -> int:
    """Train; what can go wrong on the way is one line and an exit code."""
    try:
        trainer.fit(run.module, datamodule=run.data, ckpt_path=checkpoint, weights_only=True)
    except (RuntimeError, MemoryError, OSError) as error:
        line = told(error, run)
        if line is None:
            raise
        log.error("%s", line)
        if trainer.is_global_zero:
            record_failure(run, line)
        return FAILED
    except SystemExit:  # Lightning's answer to a second signal
        log.error("stopped at once%s", onward(run))
        return stopped_by(stopper.received)
    return DONE


def told(error: RuntimeError | MemoryError | OSError, run: Run) -> str | None:
    """What went wrong in one line; None if it is a mistake in the code, which a traceback tells."""
    lines = str(error).splitlines() or [type(error).__name__]
    first, last = lines[0], lines[-1]  # of a loader process's error, the whole traceback
    if is_out_of_memory(error):
        return out_of_memory(run)
    if first.startswith("DataLoader worker"):
        return f"a loader process has died, perhaps for want of memory: {first}{onward(run)}"
    if isinstance(error, torch.distributed.DistError) or "gloo" in first:
        what = first.partition("] ")[2].partition(". ")[0] or first  # not where in gloo's source
        return f"another rank has ended, and with it the search: {what}{onward(run)}"
    known = isinstance(error, NonFiniteLossError | RanksDifferError | OSError)
    return last if known else None


def onward(run: Run) -> str:
    """How a search that has ended goes on, as the end of a line; nothing if from the start."""
    checkpoint = run.folder.checkpoint
    return f"; resume=auto continues from {checkpoint}" if checkpoint.exists() else ""


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Until the record of this search is written, no earlier one; an exception leaves one too."""
    run.folder.summary.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        # Of a loader process's error, the message ends with the original one.
        record_failure(run, f"{type(error).__name__}: {error}".splitlines()[-1])
        raise


def record_failure(run: Run, reason: str) -> None:
    """Write the record of a search that ended out of order, for `reason`."""
    with suppress(OSError):  # it may be the disk
        facts = {"name": run.config["name"], "state": "failed", "reason": reason}
        write_json(run.folder.summary, {**facts, "config": run.config})


def stop_code(stopping: StopOnSignal, readings: Readings) -> int:
    """The exit code of a search that ended in order."""
    if stopping.agreed and not readings.is_complete:
        return stopped_by(stopping.agreed)
    return COLLAPSED if readings.has_stopped_search else DONE


def finish(
    run: Run,
    origin: Mapping[str, object],
    readings: Readings,
    clock: Clock,
    device: torch.device,
) -> dict[str, object]:
    """Write the record, and say where everything is and what the verdict is.

    Args:
        run: that has ended.
        origin: what it was started from, taken before it began.
        readings: of the run.
        clock: of the run.
        device: that it ran on.
    """
    data, masking, last = run.data.describe(), run.parts.masking, readings.readings[-1]
    state = "finished" if readings.is_complete else "stopped"
    record = {
        "name": run.config["name"],
        "state": "collapsed" if readings.has_stopped_search else state,
        **search_record(readings.readings, run.folder, run.parts.space),
        "seed": run.config["seed"],
        "device": describe_device(device),
        "wall_seconds": clock.total,
        "images_per_second": 2 * run.data.batch_size / max(clock.seconds_per_step, 1e-9),
        "waiting_share": clock.waiting_share,
        "peak_memory_bytes": peak_memory(device),
        "preflight": run.cost and asdict(run.cost),
        "backend": "reference",  # the implementation of the supernet's cells
        "yardsticks": run.yardsticks,
        "beats_yardsticks": last.held_out_loss < min(run.yardsticks.values(), default=math.inf),
        "mask_ratio": {
            "nominal": masking.ratio,
            "effective": masking.effective_ratio(run.data.side),
        },
        "costs": network_costs(run.module, run.data),
        "skipped_files": data.pop("skipped_files"),
        "data": data,
        "epochs": run.module.epochs,
        "steps_per_epoch": run.module.steps_per_epoch,
        "config": run.config,
        "config_hash": config_hash(run.config),
        **origin,
    }
    write_json(run.folder.summary, record)
    log.info("%s", verdict_line(last))
    log.info("held-out loss %.4f after %d steps", last.held_out_loss, last.step)
    if not record["beats_yardsticks"]:
        missed = {k: v for k, v in run.yardsticks.items() if last.held_out_loss >= v}
        log.warning("no better than %s: nothing learned yet", yardstick_words(missed))
    log.info("genotype   %s", run.folder.genotype)
    log.info("pictures   %s: cells.png, alpha.png, losses.png, …", run.folder.plots)
    log.info("summary    %s", run.folder.summary)
    if record["state"] == "stopped":
        log.info("to go on   the same command with resume=auto hydra.run.dir=%s", run.folder.path)
    return record
