"""The jobs of a sweep: for each point of the grid a command line and a folder.

A job is a single run with `resume=auto`, so that one that was stopped goes on. Names are judged
here, for all jobs, before any starts. Nothing here imports torch.
"""

import hashlib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mae_nas.checks import raise_all
from mae_nas.cli.compose import Composed, compose, revalued
from mae_nas.cli.library import open_library
from mae_nas.cli.spelling import quoted
from mae_nas.keys import find
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.listing import printable
from mae_nas.runs.resume import differences, follow

_LONGEST_NAME = 120


@dataclass(frozen=True)
class Job:
    """One point of a sweep, and how its process ended.

    Args:
        number: from 0, in the sweep's order.
        folder: of its run.
        verb: what runs it, `search` or `train`.
        arguments: of its command, without what the sweep itself adds.
        point: the values of the sweep's axes, as written.
        config: composed; None where it cannot be.
        code: its exit code; None if it was not started, or has not ended.
        reason: its last words, if it failed.
    """

    number: int
    folder: Path
    verb: str
    arguments: tuple[str, ...]
    point: Mapping[str, str]
    config: dict[str, Any] | None = None
    code: int | None = None
    reason: str = ""

    @property
    def command(self) -> tuple[str, ...]:
        """What starts it, or goes on with it."""
        home = f"hydra.run.dir={quoted(str(self.folder))}"
        start = (sys.executable, "-m", "mae_nas", self.verb)
        return (*start, *self.arguments, "resume=auto", home)

    @property
    def devices(self) -> int:
        """Of one computer."""
        return self._count("devices")

    @property
    def nodes(self) -> int:
        """Computers."""
        return self._count("num_nodes")

    @property
    def on_gpus(self) -> bool:
        """Whether devices are GPUs where there are some."""
        return find(self.config, "trainer.accelerator") != "cpu"

    @property
    def ended(self) -> str:
        """`finished` or `collapsed` if its folder holds its result already."""
        try:
            return follow({**(self.config or {}), "resume": "auto"}, self.folder).ended
        except (ValueError, OSError):
            return ""  # its process says why

    @property
    def is_running(self) -> bool:
        """Whether a process holds its folder."""
        try:
            return RunFolder(self.folder).is_held()
        except OSError:
            return False  # its process says why

    @property
    def recorded(self) -> int:
        """When its record was written, in nanoseconds; 0 if there is none."""
        try:
            return RunFolder(self.folder).summary.stat().st_mtime_ns
        except OSError:
            return 0

    def _count(self, key: str) -> int:
        count = find(self.config, f"trainer.{key}")
        return count if isinstance(count, int) else 1


@dataclass(frozen=True)
class Axis:
    """An override of a sweep.

    Args:
        key: without `+`.
        texts: the override with each of its values.
        is_swept: whether it was written with several.
        is_open: whether other names may be right with another of its values: it chooses a group's
            option or a class, or adds or takes away.
    """

    key: str
    texts: Sequence[str]
    is_swept: bool = False
    is_open: bool = False


def split_values(overrides: Sequence[str], groups: Collection[str]) -> list[Axis]:
    """Each override with its values; of several with the same key the last.

    Args:
        overrides: as written.
        groups: names of the groups.
    """
    parser, axes = OverridesParser.create(), {}
    for text in overrides:
        key, texts, is_swept = text.partition("=")[0].lstrip("+"), [text], False
        try:
            override = parser.parse_override(text)
        except HydraException:  # `compose` says what is wrong with it
            axes[text] = Axis(key, texts)
            continue
        if override.is_sweep_override():
            listed = override.is_discrete_sweep() and not isinstance(override.value(), Glob)
            name, is_swept = override.get_key_element(), True
            values = list(override.sweep_string_iterator()) if listed else []
            if not values:
                raise ValueError(
                    f"{text}: a sweep needs values that can be listed: a,b or range(0,5)"
                )
            texts = [f"{name}={value}" for value in values]
        is_open = key in groups or key.endswith("._target_") or text[0] in "+~" or "{" in text
        axes[key] = Axis(key, texts, is_swept, is_open)
    return list(axes.values())


def compose_grid(
    axes: Sequence[Axis], config_dir: Path | None, verb: str = "search"
) -> dict[tuple[str, ...], Composed | str]:
    """The configuration of every combination of open values, or what is wrong with it.

    Of the other axes the first value stands for all, since names are the same for each.

    Raises:
        ValueError: what is wrong with a value in every combination that has it. One that cannot be
            while others with its values can is left to its job, a row of the table.
    """
    choices = [axis.texts if axis.is_open else axis.texts[:1] for axis in axes]
    tried: dict[tuple[str, ...], Composed | str] = {}
    for point in product(*choices):
        try:
            tried[point] = compose(list(point), config_dir, verb)
        except ValueError as error:
            tried[point] = str(error)
    problems: list[str] = []
    for place, texts in enumerate(choices):
        for text in texts:
            found = [result for point, result in tried.items() if point[place] == text]
            refusals = [result for result in found if isinstance(result, str)]
            if len(refusals) == len(found):
                problems += refusals[0].splitlines()
    raise_all(dict.fromkeys(problems))
    return tried


def plan_jobs(
    overrides: Sequence[str], config_dir: Path | None, verb: str = "search"
) -> tuple[list[Job], list[str]]:
    """A job for every point, of equal ones the first; and the overrides that all of them share.

    Raises:
        ValueError: a line for each mistake in the names.
    """
    with open_library(verb, config_dir) as library:
        groups = library.groups()
    axes = split_values(overrides, groups)
    composed = compose_grid(axes, config_dir, verb)
    common = _shared_overrides(axes, groups)
    with open_library(verb, config_dir) as library:
        hydra = library.compose(common).hydra
    params = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
    if params:  # axes from a file
        axes = split_values([*params, *overrides], groups)
        composed = compose_grid(axes, config_dir, verb)
    if not any(axis.is_swept for axis in axes):
        raise ValueError("-m: nothing to sweep over; give several values, as in seed=0,1")
    shared = () if config_dir is None else (f"--config-dir={config_dir.resolve()}",)
    jobs: dict[Path, Job] = {}
    for texts in product(*(axis.texts for axis in axes)):
        pairs = list(zip(axes, texts, strict=True))
        point = {axis.key: _plain(text.partition("=")[2]) for axis, text in pairs if axis.is_swept}
        base = composed[tuple(text if axis.is_open else axis.texts[0] for axis, text in pairs)]
        config = _at(base, [text for axis, text in pairs if axis.is_swept and not axis.is_open])
        told = [text for axis, text in pairs if not axis.key.startswith("hydra.")]
        folder = Path(hydra.sweep.dir) / folder_name(point)
        jobs.setdefault(folder, Job(len(jobs), folder, verb, (*shared, *told), point, config))
    return list(jobs.values()), common


def refuse_other_configurations(jobs: Sequence[Job]) -> None:
    """Raise a line if a folder holds a run of another configuration: a table would mix them.

    But for `trainer.fit_batch`, with which a job may go on that was out of memory.
    """
    for job in jobs:
        folder = RunFolder(job.folder)
        try:
            lines = differences(folder.read_config(), job.config) if job.config else []
        except (ValueError, OSError):
            continue  # none there, or its process says what is wrong with it
        lines = [line for line in lines if not line.startswith("trainer.fit_batch:")]
        if lines:
            raise ValueError(
                f"hydra.sweep.dir: {job.folder.parent} is of a sweep with another configuration "
                f"({printable(lines[0])}); choose another"
            )


def _shared_overrides(axes: Sequence[Axis], groups: Collection[str]) -> list[str]:
    fixed = [(axis.key in groups, axis.texts[0]) for axis in axes if not axis.is_swept]
    texts = [text for chooses, text in fixed if chooses and not text.endswith("=null")]
    # `++`, as a swept option alone may know the key.
    return texts + [
        f"++{text.lstrip('+')}" for chooses, text in fixed if not chooses and text[0] != "~"
    ]


def _plain(value: str) -> str:
    """Without the backslashes that Hydra puts before `:` and the like."""
    return value if value.startswith(("'", '"')) else re.sub(r"\\(.)", r"\1", value)


def _at(base: Composed | str, texts: Sequence[str]) -> dict[str, Any] | None:
    """None for a point that cannot be; its job will say why."""
    try:
        return None if isinstance(base, str) else revalued(base.tree, texts)
    except OmegaConfBaseException:
        return None


def folder_name(point: Mapping[str, str]) -> str:
    """Name of a job's folder: the values of the axes in whatever order they were given."""
    text = ",".join(f"{key}={value}" for key, value in sorted(point.items())) or "job"
    name = re.sub(r"[^\w.,=+-]", "_", text)[:_LONGEST_NAME]
    # What was replaced or cut off tells points apart too.
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
