"""What a search step takes: time and memory."""

import copy
import ctypes
import os
import resource
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from mae_nas.data import StepData
from mae_nas.runs.trainer import TrainerSettings
from mae_nas.stepping import StepModule

_STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device) -> int:
    """Most bytes held at once: on the device where torch knows, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class StepCost:
    """What an alternating step takes, on one device.

    On CUDA, bytes are those of torch's allocator. On Linux's CPU they are resident memory of the
    whole process, Python and libraries included; elsewhere only `peak_bytes` is known, and as the
    process's all-time peak.

    Args:
        images: in a micro-batch.
        seconds: of a step, waiting for data included.
        peak_bytes: most that was held at once.
        fixed_bytes: held between steps, whatever the micro-batch: weights, momentum, images.
        reserved_bytes: most that was taken from the device, fragments included.
        device_bytes: of the device, or of the computer.
        is_estimate: from a micro-batch of another size.
    """

    images: int
    seconds: float
    peak_bytes: int
    fixed_bytes: int
    reserved_bytes: int
    device_bytes: int
    is_estimate: bool = False

    def of(self, images: int) -> Self:
        """An estimate of the step in micro-batches of so many images, which memory grows by."""
        grown = (self.peak_bytes - self.fixed_bytes) * images // self.images
        held = self.fixed_bytes + grown
        return replace(self, images=images, peak_bytes=held, reserved_bytes=held, is_estimate=True)


def measure_step(
    module: StepModule, data: StepData, settings: TrainerSettings, steps: int = 10
) -> StepCost:
    """Run real alternating steps on a copy; the module, the data's order and randomness are as new.

    At most `steps`, and no more than take half a second: two or more, for the first is slower than
    the others and is not timed. α is stepped whatever the warm-up, so that memory is the most that
    will be asked for. Of several ranks one is measured, alone with its share of the batch: what the
    others add, a copy of the gradients and the time to exchange them, is left out.

    Args:
        module: on the CPU, not trained.
        data: loaded.
        settings: for device, precision, ranks and accumulation.
        steps: most that are done, 2 or more.

    Raises:
        RuntimeError, MemoryError: what the step does; `is_out_of_memory` tells which it is.
    """
    module = copy.deepcopy(module)
    module.work_hardest()
    share = data.cut(data.batch_size // settings.ranks, settings.accumulate)
    meter = _Meter(steps, share.batch_size // share.accumulate)
    alone = replace(settings, devices=1, num_nodes=1, strategy="auto")
    try:
        with isolate_rng():
            alone.make(steps, [meter], Path()).fit(module, datamodule=share)
    except SystemExit:  # Lightning's answer to a KeyboardInterrupt
        raise KeyboardInterrupt from None
    return meter.cost


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says, in one of the ways of torch and its libraries, that memory is exhausted."""
    words = ("out of memory", "DefaultCPUAllocator", "ALLOC_FAILED", "bad_alloc")
    is_known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_known or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


class _Meter(pl.Callback):
    """Times steps and watches memory until it has seen enough."""

    cost: StepCost

    def __init__(self, most: int, images: int) -> None:
        self.most, self.images = most, images

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        self.device = trainer.strategy.root_device
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _trim()
            with suppress(OSError):  # forget the peak of what came before; Linux alone can
                Path("/proc/self/clear_refs").write_text("5")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        step, now = trainer.global_step, time.monotonic()
        if step == 1:
            self._began = now
        elif step == self.most or now - self._began > 0.5:
            self.cost = StepCost(self.images, (now - self._began) / (step - 1), *self._memory())
            trainer.should_stop = True

    def _memory(self) -> tuple[int, int, int, int]:
        """Peak, held now, taken from the device, and the device's own."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            reserved = torch.cuda.max_memory_reserved(self.device)
            whole = torch.cuda.mem_get_info(self.device)[1]
            return peak, torch.cuda.memory_allocated(self.device), reserved, whole
        _trim()
        lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
        status = dict(line.split(":", 1) for line in lines)
        peak, now = (int(status.get(name, "0").split()[0]) << 10 for name in ("VmHWM", "VmRSS"))
        peak = peak or peak_memory(self.device)
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return peak, now, peak, whole


def _trim() -> None:
    """What was freed goes back to the system, or it would look as if it were held (glibc)."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
