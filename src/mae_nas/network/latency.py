"""How fast networks are on the device at hand, measured in turns."""

import platform
import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

_LEAST, _MOST = 5, 1000  # rounds


@dataclass(frozen=True)
class Timing:
    """Seconds that a batch takes: the median over rounds, the quartiles, and the least.

    What else goes on only ever adds: the least tells small differences best.
    """

    batch: int
    rounds: int
    least: float
    low: float
    median: float
    high: float

    @property
    def images_per_second(self) -> float:
        return self.batch / self.median


@torch.inference_mode()
def time_networks(
    networks: Mapping[str, nn.Module], image: Tensor, seconds: float
) -> dict[str, Timing]:
    """Time `network(image)` of all, which take turns, so that what else goes on meets them alike.

    Args:
        networks: on the image's device, in evaluation mode.
        image: (B, C, S, S).
        seconds: to spend on each, about; five rounds are run whatever they take.
    """
    taken: dict[str, list[float]] = {name: [] for name in networks}
    for network in networks.values():
        _seconds(network, image)  # the first is slower
    end = time.perf_counter() + seconds * len(networks)
    for done in range(_MOST):
        if done >= _LEAST and time.perf_counter() > end:
            break
        for name, network in networks.items():
            taken[name].append(_seconds(network, image))
    return {name: _timing(len(image), values) for name, values in taken.items()}


def _seconds(network: nn.Module, image: Tensor) -> float:
    is_cuda = image.device.type == "cuda"
    began = time.perf_counter()
    network(image)
    if is_cuda:
        torch.cuda.synchronize(image.device)
    return time.perf_counter() - began


def _timing(batch: int, values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(batch, len(values), min(values), low, median, high)


def device_type(accelerator: str) -> str:
    """Where `accelerator` computes on this computer: cpu, cuda or mps."""
    if accelerator != "auto":
        return accelerator
    others = "mps" if torch.backends.mps.is_available() else "cpu"
    return "cuda" if torch.cuda.is_available() else others


def describe_device(device: torch.device) -> dict[str, object]:
    """What computes, in JSON's types."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device)}
    information = Path("/proc/cpuinfo")
    model = re.search(
        r"model name\s*:\s*(.+)", information.read_text() if information.exists() else ""
    )
    name = model[1] if model else platform.processor() or platform.machine()
    return {"type": device.type, "name": name, "threads": torch.get_num_threads()}
