"""The record of a run: summary.json, and a line of an experiment's records.jsonl."""

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from mae_nas import __version__
from mae_nas.data import StepData
from mae_nas.network.complexity import count_multiply_adds, count_parameters
from mae_nas.relaxations import Fixed
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.tables import MetricsTable
from mae_nas.search import SearchModule, SearchReading
from mae_nas.search.collapse import mean_skips
from mae_nas.spaces import SearchSpace
from mae_nas.stepping import evaluating
from mae_nas.supernet import ReferenceCell, Supernet, SupernetSize

PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "numpy")
CODE = (":/src", ":/conf", ":/pyproject.toml")  # what else lies there changes no result
LOSSES = ("weight_loss", "arch_loss")


def git_state() -> dict[str, object]:
    """Commit of the checkout that the running code comes from, and whether it was changed."""
    file = Path(__file__)

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(file.parent), *arguments]
        try:
            said = subprocess.check_output(command, stderr=subprocess.DEVNULL, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        return said.decode().strip()

    if git("ls-files", "--error-unmatch", file.name) is None:
        return {"commit": None, "dirty": None}  # installed, or inside someone else's repository
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", *CODE))}


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    own = {"python": platform.python_version(), "mae-nas": __version__}
    return own | {name: version(name) for name in PACKAGES}


@torch.no_grad()
def network_costs(module: SearchModule, data: StepData) -> dict[str, dict[str, int]]:
    """Parameters and multiply-adds (forward, one image) of the supernet and of the decoder."""
    batch = next(data.preview(2))  # the null arm needs another image
    images = len(batch.image)
    supernet = module.supernet
    with evaluating(module):
        module.supernet = supernet.as_reference()
        try:
            whole = count_multiply_adds(lambda: module.loss(batch))
            encoder = count_multiply_adds(
                lambda: module.supernet(batch.image, module.relaxation.mixture())
            )
        finally:
            module.supernet = supernet
    parts = {"supernet": (module.supernet, encoder), "decoder": (module.objective, whole - encoder)}
    return {
        name: {"parameters": count_parameters(part), "multiply_adds": operations // images}
        for name, (part, operations) in parts.items()
    }


def costs_alone(
    genotype: str, space: SearchSpace, size: SupernetSize, side: int, channels: int, stages: int
) -> dict[str, int]:
    """What a cell costs where the supernet stood, as `relaxation=fixed` trains it.

    Args:
        genotype: see `Fixed`; ValueError if it is not of `space`.
        space: that was searched.
        size: of the supernet.
        side: of the images, pixels.
        channels: of the images.
        stages: whose features the decoder reads, 1 to 3.
    """
    with torch.device("meta"):  # shapes alone
        relaxation = Fixed(space, genotype)
        supernet = Supernet(
            relaxation.space, channels, stages, size.plan(space, side), ReferenceCell
        )
        image = torch.empty(2, channels, side, side)
        operations = count_multiply_adds(lambda: supernet(image, relaxation.mixture()))
    return {"parameters": count_parameters(supernet), "multiply_adds": operations // 2}


def search_record(
    readings: Sequence[SearchReading], folder: RunFolder, space: SearchSpace
) -> dict[str, object]:
    """What the search found: the part of the record that its result is."""
    last = readings[-1]
    rows = MetricsTable(folder.metrics).rows()
    losses = {name: float(rows[-1][name]) for name in LOSSES if rows and rows[-1][name]}
    chance = {
        kind: {"mean": mean_skips(space, kind), "at_least_as_many": last.chance[kind]}
        for kind in last.skips
    }
    return {
        "verdict": last.verdict,
        "final": {"step": last.step, "held_out_loss": last.held_out_loss, **losses},
        "skip_counts": last.skips,
        "skip_chance": chance,
        "entropy": last.entropy,
        "undetermined": last.undetermined,
        "readings": len(readings),
        "genotype": last.genotype.to_dict(),
    }
