"""What a run says of itself: of its images, at its end, and when something goes wrong."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, cast

import torch

from mae_nas.cli.launch import way_on
from mae_nas.cli.preflight import out_of_memory
from mae_nas.cli.run import Run
from mae_nas.network.latency import describe_device
from mae_nas.ranks import RanksDifferError
from mae_nas.runs.callbacks import Clock, Readings
from mae_nas.runs.files import write_json
from mae_nas.runs.listing import counted, printable
from mae_nas.runs.measure import is_out_of_memory, peak_memory
from mae_nas.runs.resume import config_hash
from mae_nas.stepping import NonFiniteLossError

log = logging.getLogger("mae_nas")


def announce_data(run: Run[Any]) -> None:
    """What is missing of the whole, and the images."""
    if run.config["left_out"]:
        log.warning("not the whole experiment: %s", "; ".join(run.config["left_out"]))
    facts = run.data.describe()
    log.info(
        "%s images of %d × %d, %s: %s",
        *(facts["images"], facts["side"], facts["side"]),
        counted(cast("int", facts["channels"]), "channel"),
        ", ".join(f"{facts[key]} {said}" for key, said in run.data.shares.items() if facts[key]),
    )
    skipped = cast("list[dict[str, str]]", facts["skipped_files"])
    for entry in skipped[:5]:
        log.warning("skipped %s: %s", printable(entry["file"]), printable(entry["reason"]))
    if skipped:
        log.warning("%s skipped; summary.json names all", counted(len(skipped), "file"))


def explain(error: RuntimeError | MemoryError | OSError, run: Run[Any]) -> str | None:
    """What went wrong in one line; None if it is a mistake in the code, which a traceback tells."""
    lines = str(error).splitlines() or [type(error).__name__]
    first, last = lines[0], lines[-1]  # of a loader process's error, the whole traceback
    if is_out_of_memory(error):
        return out_of_memory(run)
    if first.startswith("DataLoader worker"):
        return f"a loader process has died, perhaps for want of memory: {first}{onward(run)}"
    if isinstance(error, torch.distributed.DistError) or "gloo" in first:
        what = first.partition("] ")[2].partition(". ")[0] or first  # not where in gloo's source
        return f"another rank has ended, and with it the {run.what}: {what}{onward(run)}"
    known = isinstance(error, NonFiniteLossError | RanksDifferError | OSError)
    return last if known else None


def onward(run: Run[Any]) -> str:
    """How a search that has ended goes on, as the end of a line; nothing if from the start."""
    checkpoint = run.folder.checkpoint
    return f"; resume=auto continues from {checkpoint}" if checkpoint.exists() else ""


@contextmanager
def recorded(run: Run[Any]) -> Iterator[None]:
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


def finish(
    run: Run[Any],
    origin: Mapping[str, object],
    readings: Readings[Any],
    clock: Clock,
    device: torch.device,
) -> dict[str, object]:
    """Write the record, and say where everything is and what came out.

    Args:
        run: that has ended.
        origin: what it was started from, taken before it began.
        readings: of the run.
        clock: of the run.
        device: that it ran on.
    """
    data, steps = run.data.describe(), readings.step
    state = "finished" if readings.is_complete else "stopped"
    rate = run.images(steps) / max(steps, 1) / max(clock.seconds_per_step, 1e-9)
    record = {
        "name": run.config["name"],
        "state": "collapsed" if readings.has_ended_run else state,
        **run.record(readings.readings),
        "seed": run.config["seed"],
        "device": describe_device(device),
        "wall_seconds": clock.total,
        "images_per_second": rate,
        "waiting_share": clock.waiting_share,
        "peak_memory_bytes": peak_memory(device),
        "preflight": run.cost and asdict(run.cost),
        "backend": run.module.implementation,
        "skipped_files": data.pop("skipped_files"),
        "data": data,
        "epochs": run.module.epochs,
        "steps_per_epoch": run.module.steps_per_epoch,
        "config": run.config,
        "config_hash": config_hash(run.config),
        **origin,
    }
    write_json(run.folder.summary, record)
    run.close(record, readings.readings)
    log.info("summary    %s", run.folder.summary)
    if record["state"] == "stopped":
        log.info("to go on   %s", way_on(run.folder.path))
    return record
