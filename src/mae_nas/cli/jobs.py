"""The jobs of a sweep: for each point of the grid a command line and a folder.

A job is a single run with `resume=auto`, so that one that was stopped goes on, and one that is done
says so at once. Nothing here imports torch.
"""

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from mae_nas.cli.spelling import quoted

_LONGEST_NAME = 120


@dataclass(frozen=True)
class Job:
    """One point of a sweep, and how its process ended.

    Args:
        number: from 0, in the sweep's order.
        folder: of its run.
        arguments: of its `mae-nas search`, without what the sweep itself adds.
        point: the values of the sweep's axes, as written.
        devices: of one computer.
        on_gpus: whether devices are GPUs where there are some.
        nodes: computers.
        code: its exit code; None if it was not started, or has not ended.
        reason: its last words, if it failed.
    """

    number: int
    folder: Path
    arguments: tuple[str, ...]
    point: Mapping[str, str]
    devices: int = 1
    on_gpus: bool = True
    nodes: int = 1
    code: int | None = None
    reason: str = ""

    @property
    def command(self) -> tuple[str, ...]:
        """What starts it, or goes on with it."""
        home = f"hydra.run.dir={quoted(str(self.folder))}"
        search = (sys.executable, "-m", "mae_nas", "search")
        return (*search, *self.arguments, "resume=auto", home)


def plan_jobs(
    sweep: DictConfig,
    configs: Sequence[DictConfig | None],
    job_overrides: Sequence[Sequence[str]],
    first: int,
) -> list[Job]:
    """A job for every point; of equal ones, the first.

    Args:
        sweep: the sweep's configuration, Hydra's node included.
        configs: of the jobs; None for a point that cannot be composed.
        job_overrides: of the jobs.
        first: number of the first.
    """
    folder, params = Path(sweep.hydra.sweep.dir), sweep.hydra.sweeper.params or {}
    places = [place.removeprefix("file://") for place in sweep.hydra.searchpath]
    shared = [f"--config-dir={place}" for place in places]
    texts = [*(f"{key}={value}" for key, value in params.items()), *sweep.hydra.overrides.task]
    parsed = OverridesParser.create().parse_overrides(texts)
    axes = list(dict.fromkeys(o.key_or_group for o in parsed if o.is_sweep_override()))
    jobs: dict[Path, Job] = {}
    for config, overrides in zip(configs, job_overrides, strict=True):
        pairs = (override.lstrip("+").partition("=") for override in overrides)
        values = {key: value for key, _, value in pairs}
        point = {axis: values[axis] for axis in axes}
        trainer = OmegaConf.select(config, "trainer") if config is not None else {}
        counts = [trainer.get(key, 1) for key in ("devices", "num_nodes")]
        devices, nodes = (count if isinstance(count, int) else 1 for count in counts)
        on_gpus = trainer.get("accelerator") != "cpu"
        path, arguments = folder / folder_name(point), (*shared, *overrides)
        job = Job(first + len(jobs), path, arguments, point, devices, on_gpus, nodes)
        jobs.setdefault(path, job)
    return list(jobs.values())


def folder_name(point: Mapping[str, str]) -> str:
    """Name of a job's folder: the values of the axes in whatever order they were given."""
    text = ",".join(f"{key}={value}" for key, value in sorted(point.items())) or "job"
    name = re.sub(r"[^\w.,=+-]", "_", text)[:_LONGEST_NAME]
    # What was replaced or cut off tells points apart too.
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
