"""What a search says of itself: at its start, at its end, and when something goes wrong."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import cast

import torch

from mae_nas.cli.assemble import Run
from mae_nas.cli.launch import way_on
from mae_nas.cli.preflight import out_of_memory
from mae_nas.ranks import RanksDifferError
from mae_nas.runs.callbacks import Clock, Readings, verdict_line
from mae_nas.runs.files import write_json
from mae_nas.runs.listing import counted, printable
from mae_nas.runs.measure import is_out_of_memory, peak_memory
from mae_nas.runs.records import describe_device, network_costs, search_record
from mae_nas.runs.resume import config_hash
from mae_nas.search import NonFiniteLossError

log = logging.getLogger("mae_nas")


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
        log.warning("skipped %s: %s", printable(entry["file"]), printable(entry["reason"]))
    if skipped:
        log.warning("%d files skipped; summary.json names them all", len(skipped))
    total = run.module.epochs * run.module.steps_per_epoch
    log.info(
        "mask ratio %g (%g in whole patches of %d × %d), %s; %s of %d steps%s; precision %s",
        *(masking.ratio, masking.effective_ratio(run.data.side)),
        *(masking.patch_size, masking.patch_size, masking.mode),
        *(
            counted(run.module.epochs, "epoch"),
            run.module.steps_per_epoch,
            "" if run.last_step == total else f", {run.last_step} of {total} in all",
            run.config["trainer"]["precision"],
        ),
    )
    if run.yardsticks:
        log.info("loss of predictors that learn nothing: %s", yardstick_words(run.yardsticks))


def yardstick_words(yardsticks: Mapping[str, float]) -> str:
    """Yardsticks as "constant 0.842, visible mean 0.714"."""
    return ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in yardsticks.items())


def explain(error: RuntimeError | MemoryError | OSError, run: Run) -> str | None:
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


def _images_a_step(run: Run, steps: int) -> float:
    """On average: one batch for w in every step, and one for α in those after the warm-up."""
    warm = min(run.module.arch_start, steps)
    return run.data.batch_size * (2 - warm / max(steps, 1))


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
        "images_per_second": _images_a_step(run, last.step) / max(clock.seconds_per_step, 1e-9),
        "waiting_share": clock.waiting_share,
        "peak_memory_bytes": peak_memory(device),
        "preflight": run.cost and asdict(run.cost),
        "backend": run.module.supernet.implementation,
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
        log.info("to go on   %s", way_on(run.folder.path))
    return record
