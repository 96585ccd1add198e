"""The record of a run: summary.json, and a line of an experiment's records.jsonl."""

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from mae_nas import __version__
from mae_nas.data import SearchData
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.measure import count_multiply_adds, count_parameters
from mae_nas.runs.tables import MetricsTable
from mae_nas.search import Reading, SearchModule
from mae_nas.search.collapse import chance_of_skips
from mae_nas.search.module import evaluating
from mae_nas.spaces import SearchSpace

PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "numpy")
LOSSES = ("weight_loss", "arch_loss")


def git_state() -> dict[str, object]:
    """Commit of the checkout that the running code comes from, and whether it was changed."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": None, "dirty": None}  # installed, or inside someone else's repository
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    own = {"python": platform.python_version(), "mae-nas": __version__}
    return own | {name: version(name) for name in PACKAGES}


def describe_device(device: torch.device) -> dict[str, object]:
    """What the run computed on."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device)}
    return {"type": device.type, "name": processor_name(), "threads": torch.get_num_threads()}


def processor_name() -> str:
    """Model of the CPU, as far as the system tells."""
    information = Path("/proc/cpuinfo")
    lines: list[str] = information.read_text().splitlines() if information.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


@torch.no_grad()
def network_costs(module: SearchModule, data: SearchData) -> dict[str, dict[str, int]]:
    """Parameters and multiply-adds (forward, one image) of the supernet and of the decoder."""
    images = 2  # the null arm needs another image
    batch = data.preview(images)
    with evaluating(module):
        whole = count_multiply_adds(lambda: module.loss(batch))
        encoder = count_multiply_adds(
            lambda: module.supernet(batch.image, module.relaxation.mixture())
        )
    return {
        "supernet": {
            "parameters": count_parameters(module.supernet),
            "multiply_adds": encoder // images,
        },
        "decoder": {
            "parameters": count_parameters(module.objective),
            "multiply_adds": (whole - encoder) // images,
        },
    }


def search_record(
    readings: Sequence[Reading], folder: RunFolder, space: SearchSpace
) -> dict[str, object]:
    """What the search found: the part of the record that its result is."""
    last = readings[-1]
    rows = MetricsTable(folder.metrics).rows()
    losses = {name: float(rows[-1][name]) for name in LOSSES if rows and rows[-1][name]}
    chance = {
        kind: {
            "mean": float((np.arange(len(p)) * p).sum()),
            "at_least_as_many": last.chance[kind],
        }
        for kind in last.skips
        for p in [chance_of_skips(space, kind)]
    }
    return {
        "verdict": last.verdict,
        "final": {
            "step": last.step,
            "held_out_loss": last.held_out_loss,
            **losses,
        },
        "skip_counts": last.skips,
        "skip_chance": chance,
        "entropy": last.entropy,
        "undetermined": last.undetermined,
        "readings": len(readings),
        "genotype": last.genotype.to_dict(),
    }
