"""Real steps before a search: what it will take, and what fits where that is too much memory."""

import gc
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import torch

from mae_nas.cli.assemble import Run
from mae_nas.runs.measure import StepCost, is_out_of_memory, measure_step

log = logging.getLogger("mae_nas")


def preflight(run: Run, steps: int, may_fit: bool) -> Run:
    """Say how long `steps` will take and in how much memory; the run, its step's cost known.

    Args:
        run: prepared; nothing of it changes but accumulation.
        steps: still to do.
        may_fit: whether `trainer.fit_batch` may choose, which a run with a checkpoint has done.

    Raises:
        ValueError: memory does not suffice.
    """
    cost = _try(run)
    if cost is None:
        smaller = _smaller(run)
        if smaller is None or not (may_fit and run.settings.fit_batch):
            raise ValueError(out_of_memory(run, smaller and smaller.cost, is_last=smaller is None))
        run, cost = smaller, smaller.cost
        assert cost is not None
        log.info(
            "trainer.accumulate=%d: the batch in parts of %d images, since larger ones do not fit; "
            "the same search but for BatchNorm, whose statistics are those of a part",
            *(run.settings.accumulate, cost.images),
        )
    total = timedelta(seconds=round(cost.seconds * steps))
    said = f"{cost.seconds:.2g}", gigabytes(cost.reserved_bytes), gigabytes(cost.device_bytes)
    log.info("about %s s per step, %s of %s, %s in all", *said, total)
    return replace(run, cost=cost)


def out_of_memory(run: Run, fitting: StepCost | None = None, is_last: bool = False) -> str:
    """One line: what did not fit, and what should.

    Args:
        run: as it was tried.
        fitting: of a smaller micro-batch; None is not known, and estimated if a step was measured.
        is_last: whether nothing smaller fits.
    """
    images = run.data.batch_size // run.settings.parts
    said = f"out of memory with {images} images at a time"
    if is_last:
        return f"{said}, and with one: lower supernet.width than {run.parts.plan.width}"
    known = run.cost
    if fitting is None and known is not None and images > 1:
        less = next(_parts_of(images))
        grown = (known.peak_bytes - known.fixed_bytes) * less // images
        fitting = replace(known, images=less, reserved_bytes=known.fixed_bytes + grown)
    if fitting is None:
        return (
            f"{said}: lower data.batch_size than {run.data.batch_size}, raise trainer.accumulate "
            f"from {run.settings.accumulate} (the same batch in smaller parts), or lower "
            f"supernet.width than {run.parts.plan.width}"
        )
    ways = f"data.batch_size={fitting.images * run.settings.parts}"
    if run.config["objective"].get("target") != "permuted":
        accumulate = run.settings.accumulate * images // fitting.images
        ways += f" or trainer.accumulate={accumulate} (the same batch in smaller parts)"
    need = f"{gigabytes(fitting.reserved_bytes)} of {gigabytes(fitting.device_bytes)}"
    return f"{said}: {ways} should fit, an estimate: {fitting.images} at a time take {need}"


def gigabytes(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB"


def _smaller(run: Run) -> Run | None:
    """The run in the largest smaller micro-batches of which a step fits, cost known."""
    images = run.data.batch_size // run.settings.parts
    for part in _parts_of(images):
        accumulate = run.settings.accumulate * images // part
        config = {**run.config, "trainer": {**run.config["trainer"], "accumulate": accumulate}}
        smaller = replace(
            run,
            config=config,
            settings=replace(run.settings, accumulate=accumulate),
            data=run.data.cut(run.data.batch_size, accumulate),
        )
        cost = _try(smaller)
        if cost is not None:
            return replace(smaller, cost=cost)
    return None


def _parts_of(images: int) -> Iterator[int]:
    """Equal smaller parts, largest first."""
    return (part for part in range(images // 2, 0, -1) if images % part == 0)


def _try(run: Run) -> StepCost | None:
    """None: memory does not suffice."""
    cost = None
    try:
        cost = measure_step(run.module, run.data, run.settings)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()  # what the failure held, or the next try would find it in its way
    torch.cuda.empty_cache()
    return cost
