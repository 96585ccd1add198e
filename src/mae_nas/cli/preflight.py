"""Real steps before a search: what it will take, and what fits where that is too much memory."""

import gc
import logging
import sys
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import torch

from mae_nas.cli.run import Run
from mae_nas.data import StepData
from mae_nas.network.latency import device_type
from mae_nas.runs.measure import StepCost, is_out_of_memory, measure_step

log = logging.getLogger("mae_nas")
AnyRun = TypeVar("AnyRun", bound=Run[Any])
_FEW, _SHARE, _QUICK = 8, 0.8, 5.0  # images; of the memory; seconds of a step


def preflight(run: AnyRun, steps: int, may_fit: bool) -> AnyRun:
    """Say how long `steps` will take and in how much memory; the run, its step's cost known.

    Args:
        run: prepared; nothing of it changes but accumulation.
        steps: still to do.
        may_fit: whether `trainer.fit_batch` may choose, which a run with a checkpoint has done.

    Raises:
        MemoryError: it does not suffice; in one line, with what should fit.
    """
    fitted = fitting(run)
    cost = fitted.cost
    assert cost is not None
    if fitted.settings != run.settings:
        if not (may_fit and run.settings.fit_batch):
            raise MemoryError(out_of_memory(run, cost))
        log.info(
            "trainer.accumulate=%d: the batch in parts of %d images, since larger ones do not fit; "
            "the same search but for BatchNorm, whose statistics are those of a part",
            *(fitted.settings.accumulate, cost.images),
        )
    log.info("%s", in_words(cost, steps))
    return fitted


def fitting(run: AnyRun) -> AnyRun:
    """The run in the largest equal micro-batches of which a step fits, its cost known.

    A GPU says when its memory is exhausted, so there a step is tried. On a CPU, Linux ends what
    takes too much without a word: few images are measured first, and more are tried only if they
    should fit in 80 % of the memory. Nor is a step tried that should be slow: it is estimated.

    Raises:
        MemoryError: not even one image fits.
    """
    accumulate, images = run.settings.accumulate, run.data.batch_size // run.settings.parts
    is_silent = sys.platform == "linux" and device_type(run.settings.accelerator) == "cpu"
    few = None
    if is_silent and images > _FEW:
        few = _try(run, run.data.cut(_FEW * run.settings.parts, accumulate))
        few = few and replace(few, seconds=_of_more(run, few, images))
    for part in (part for part in range(images, 0, -1) if images % part == 0):
        smaller = _cut(run, accumulate * images // part)
        cost = few.of(part) if few and part > _FEW else None
        # Ranks share the memory; one is measured.
        if cost and cost.peak_bytes * run.settings.devices > _SHARE * cost.device_bytes:
            continue
        if cost is None or cost.seconds < _QUICK:
            cost = _try(smaller, smaller.data)
        if cost is not None:
            return replace(smaller, cost=cost)
    raise MemoryError(out_of_memory(_cut(run, accumulate * images)))


def _of_more(run: Run[Any], few: StepCost, images: int) -> float:
    """Seconds of a step on `images`, from those on few: a part is the same for any number."""
    by_image = few.seconds / few.images
    if by_image * images < _QUICK:  # it will be tried
        return by_image * images
    half = _try(run, run.data.cut(few.images // 2 * run.settings.parts, run.settings.accumulate))
    if half is not None:
        slope = (few.seconds - half.seconds) / (few.images - half.images)
        by_image = min(max(slope, by_image / 4), by_image)  # clocks are not exact
    return few.seconds + by_image * (images - few.images)


def out_of_memory(run: Run[Any], smaller: StepCost | None = None) -> str:
    """One line: what did not fit, and what should.

    Args:
        run: as it was tried.
        smaller: of a micro-batch that fits; by default the next smaller one may.
    """
    images = run.data.batch_size // run.settings.parts
    if images == 1:
        return f"out of memory with one image at a time: {run.smaller}"
    fewer = smaller.images if smaller else max(n for n in range(1, images) if images % n == 0)
    known = smaller or (run.cost and run.cost.of(fewer))
    ways = f"data.batch_size={fewer * run.settings.parts}"
    if run.is_divisible:
        accumulate = run.settings.accumulate * images // fewer
        ways += f" or trainer.accumulate={accumulate} (the same batch in smaller parts)"
    fit = (
        f"should fit, an estimate: {fewer} at a time take {_memory(known)}" if known else "may fit"
    )
    return f"out of memory with {images} images at a time: {ways} {fit}"


def in_words(cost: StepCost, steps: int) -> str:
    """What a step takes, and so many."""
    total = timedelta(seconds=round(cost.seconds * steps))
    how = ", estimated from few images" if cost.is_estimate else ""
    seconds = f"{cost.seconds:.2g}" if cost.seconds < 10 else f"{cost.seconds:.0f}"
    return f"about {seconds} s per step, {_memory(cost)}, {total} in all{how}"


def _memory(cost: StepCost) -> str:
    return f"{cost.reserved_bytes / 1e9:.1f} GB of {cost.device_bytes / 1e9:.1f} GB"


def _cut(run: AnyRun, accumulate: int) -> AnyRun:
    return replace(
        run,
        config={**run.config, "trainer": {**run.config["trainer"], "accumulate": accumulate}},
        settings=replace(run.settings, accumulate=accumulate),
        data=run.data.cut(run.data.batch_size, accumulate),
    )


def _try(run: Run[Any], data: StepData) -> StepCost | None:
    """None: memory does not suffice."""
    cost = None
    try:
        cost = measure_step(run.module, data, run.settings)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()  # what the failure held, or the next try would find it in its way
    torch.cuda.empty_cache()
    return cost
