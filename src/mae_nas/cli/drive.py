"""What happens from a checked configuration to the exit code, whatever is trained."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console

from mae_nas.cli import launch
from mae_nas.cli.announce import explain, finish, onward, record_failure, recorded
from mae_nas.cli.build import build
from mae_nas.cli.codes import COLLAPSED, DONE, FAILED, stopped_by
from mae_nas.cli.logs import Terminal, logging_to
from mae_nas.cli.preflight import preflight
from mae_nas.cli.run import Config, Run
from mae_nas.data import StepData
from mae_nas.runs.callbacks import Checkpoints, Clock, Gallery, Metrics, Readings, StopOnSignal
from mae_nas.runs.checkpoint import check_fits, read_checkpoint
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.loggers import LoggerSettings, RunLog, start_log
from mae_nas.runs.progress import ProgressReport
from mae_nas.runs.records import git_state, versions
from mae_nas.runs.resume import config_hash
from mae_nas.runs.tables import JsonLines, MetricsTable
from mae_nas.runs.trainer import reading_interval
from mae_nas.runs.watch import RankWatch
from mae_nas.stopping import Stopper

log = logging.getLogger("mae_nas")

Prepare = Callable[[Config, RunFolder, Console], Run[Any]]


@dataclass(frozen=True)
class Start:
    """What a run begins with, or goes on from.

    Args:
        config: composed and checked.
        overrides: as the user gave them, for the record.
        folder: of the run, locked by the first rank's process.
        checkpoint: to continue from; None for a new run.
    """

    config: Config
    overrides: list[str]
    folder: RunFolder
    checkpoint: Path | None


def drive(prepare: Prepare, start: Start, stopper: Stopper) -> int:
    """Run, from a checked configuration to summary.json; on every rank, the first one writes.

    Args:
        prepare: builds what is run.
        start: of the run.
        stopper: that signals go to.

    Returns:
        The exit code, see `mae_nas.cli.codes`.

    Raises:
        ValueError: the parts do not fit each other, the data or the checkpoint.
    """
    config, folder, checkpoint = start.config, start.folder, start.checkpoint
    is_first = launch.is_first(config)
    console = Terminal(soft_wrap=True, quiet=not is_first)
    with logging_to(folder.log, console) if is_first else nullcontext():
        run = prepare(config, folder, console)
        identity = {"config_hash": config_hash(config), "data_hash": data_hash(run.data)}
        identity |= run.identity
        step = 0 if checkpoint is None else step_of(checkpoint, run, identity)
        if is_first:
            run.announce()
            run = measured(run, step, start.overrides)
            identity["config_hash"] = config_hash(run.config)

        origin = {"overrides": start.overrides, "git": git_state(), "versions": versions()}
        run_log, record, code = RunLog(), {}, FAILED
        if is_first:
            settings = build(LoggerSettings, config["logger"], {}, "logger")
            run_log = start_log(settings, folder, run.config, step, earlier_rows(run, step))
        try:
            clock, stopping, readings = Clock(), StopOnSignal(stopper), make_readings(run, run_log)
            seconds, seed = run.settings.checkpoint_seconds, config["seed"]
            checkpoints = Checkpoints(folder, seconds, readings, seed, identity)
            gallery = Gallery(lambda shown: run.draw(shown, run_log), readings, clock)
            beside = [clock, stopping, readings, checkpoints]
            if is_first:
                metrics = Metrics(folder, run.settings.log_every, clock, run_log)
                progress = ProgressReport(readings.last_step, clock, readings, console, run.status)
                beside = [clock, metrics, stopping, readings, checkpoints, gallery, progress]
            watch = RankWatch(lambda line: record_failure(run, line))
            trainer = run.settings.make(readings.last_step, [*beside, watch], folder.path)
            if is_first:
                watch.follow(trainer)
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


def step_of(checkpoint: Path, run: Run[Any], identity: Mapping[str, str]) -> int:
    """The step that a checkpoint continues from; ValueError unless the run can."""
    saved = read_checkpoint(checkpoint)
    check_fits(saved, run.module.state_dict(), identity, checkpoint)
    step = saved["global_step"]
    if step >= run.last_step and not run.every.exists():
        raise ValueError(f"trainer.max_steps: the run is at step {step} already; raise it")
    before, now = str(saved.get("backend", "")), run.module.implementation
    if before and before.partition("-")[0] != now.partition("-")[0]:
        log.info(
            "computed by the %s cell up to step %d, by the %s one from there", before, step, now
        )
    return step


def measured(run: Run[Any], step: int, overrides: list[str]) -> Run[Any]:
    """The run from `step` on, its cost known where wanted; stored anew if that changed it."""
    if not run.settings.preflight or step >= run.last_step:
        return run
    try:
        ready = preflight(run, run.last_step - step, may_fit=step == 0)
    except RuntimeError as error:
        line = explain(error, run)
        if line is None:
            raise
        raise ValueError(line) from error
    if ready.config != run.config:
        run.folder.write_config(ready.config, overrides)
    return ready


def make_readings(run: Run[Any], run_log: RunLog) -> Readings[Any]:
    """The readings of this run, whose numbers its log is given."""

    def take(earlier: Sequence[Any]) -> Any:  # noqa: ANN401 - the run's own kind of reading
        reading = run.take(earlier)
        run.module.check_state(run.config["seed"])  # a bad reading never replaces a good one
        run_log.row(run.values(reading))
        return reading

    return Readings(
        run.reading,
        run.every,
        take,
        interval=reading_interval(run.module.length),
        last_step=run.last_step,
        last=run.last,
        ends=run.ends,
    )


def earlier_rows(run: Run[Any], step: int) -> list[dict[str, Any]]:
    """What the run's log was told up to `step`, by earlier processes."""
    table = MetricsTable(run.folder.metrics).rows()
    rows: list[dict[str, Any]] = [{k: float(v) for k, v in row.items() if v} for row in table]
    rows += [run.values(run.reading.from_dict(row)) for row in JsonLines(run.every).rows()]
    return sorted((row for row in rows if row["step"] <= step), key=lambda row: row["step"])


def fit(trainer: pl.Trainer, run: Run[Any], checkpoint: Path | None, stopper: Stopper) -> int:
    """Train; what can go wrong on the way is one line and an exit code."""
    try:
        trainer.fit(run.module, datamodule=run.data, ckpt_path=checkpoint, weights_only=True)
    except (RuntimeError, MemoryError, OSError) as error:
        line = explain(error, run)
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


def stop_code(stopping: StopOnSignal, readings: Readings[Any]) -> int:
    """The exit code of a run that ended in order."""
    if stopping.agreed and not readings.is_complete:
        return stopped_by(stopping.agreed)
    return COLLAPSED if readings.has_ended_run else DONE


def data_hash(data: StepData) -> str:
    """Tells whether a run continues on the images it began with."""
    free = ("cache", "resident", "test")  # other test images are another question, not another run
    facts = {k: v for k, v in data.describe().items() if k not in free}
    text = json.dumps([facts, data.store.files], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
