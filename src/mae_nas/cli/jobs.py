"""The jobs of a sweep, each a process of its own: right with several devices, wandb and a crash.

A job is the command line of a single run with `resume=auto`, so that a job that was stopped goes on
and one that is done says so at once. Nothing here imports torch.
"""

import hashlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from mae_nas.checks import Checked
from mae_nas.cli.codes import FAILED
from mae_nas.cli.spelling import quoted

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

# Of whoever started the sweep: a job that inherited them would take itself for a rank of it.
_FOREIGN = re.compile(
    r"((LOCAL|GLOBAL|GROUP|NODE)_)?RANK|WORLD_SIZE|MASTER_(ADDR|PORT)|SLURM_\w+|MAE_NAS_DECIDED"
)
_LONGEST_NAME = 120
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class LauncherSettings(Checked):
    """How the jobs are run; see `hydra_plugins.mae_nas_launcher.MaeNasLauncher`."""

    parallel: int | Literal["auto"]
    executor: Literal["process", "slurm", "local"]
    slurm: Mapping[str, object]

    def _problems(self) -> Iterator[str]:
        is_count = isinstance(self.parallel, int) and self.parallel >= 1
        if not (is_count or self.parallel == "auto"):
            yield f"hydra.launcher.parallel: {self.parallel!r} is not a number of jobs, or auto"
        if self.executor not in ("process", "slurm", "local"):
            yield f"hydra.launcher.executor: {self.executor!r} is not one of process, slurm, local"
        if self.executor == "slurm" and not shutil.which("sbatch"):
            yield "hydra.launcher.executor=slurm: there is no sbatch here"
        if self.executor != "process":
            try:
                import submitit  # noqa: F401 - an optional dependency
            except ImportError:
                yield f"hydra.launcher.executor={self.executor}: pip install 'mae-nas[cluster]'"

    def at_once(self, jobs: int) -> int:
        """How many of `jobs` run at once."""
        if self.parallel == "auto":
            return jobs if self.executor == "slurm" else 1
        return min(self.parallel, jobs)


@dataclass(frozen=True)
class Job:
    """One point of a sweep, and how its process ended.

    Args:
        number: from 0, in the sweep's order.
        folder: of its run.
        arguments: of its `mae-nas search`, without what the sweep itself adds.
        point: the values of the sweep's axes, as written.
        devices: of one computer.
        nodes: computers.
        code: its exit code; None if it was not started, or has not ended.
        reason: its last words, if it failed.
    """

    number: int
    folder: Path
    arguments: tuple[str, ...]
    point: Mapping[str, str]
    devices: int = 1
    nodes: int = 1
    code: int | None = None
    reason: str = ""


def plan_jobs(
    sweep: DictConfig,
    configs: Sequence[DictConfig],
    job_overrides: Sequence[Sequence[str]],
    first: int,
) -> list[Job]:
    """A job for every point.

    Args:
        sweep: the sweep's configuration, Hydra's node included.
        configs: of the jobs.
        job_overrides: of the jobs.
        first: number of the first.
    """
    folder, params = Path(sweep.hydra.sweep.dir), sweep.hydra.sweeper.params or {}
    places = [place.removeprefix("file://") for place in sweep.hydra.searchpath]
    shared = [f"--config-dir={place}" for place in places]
    texts = [*(f"{key}={value}" for key, value in params.items()), *sweep.hydra.overrides.task]
    parsed = OverridesParser.create().parse_overrides(texts)
    axes = list(dict.fromkeys(o.key_or_group for o in parsed if o.is_sweep_override()))
    jobs = []
    for number, (config, overrides) in enumerate(zip(configs, job_overrides, strict=True), first):
        pairs = (override.lstrip("+").partition("=") for override in overrides)
        values = {key: value for key, _, value in pairs}
        point = {axis: values[axis] for axis in axes}
        trainer = [OmegaConf.select(config, f"trainer.{key}") for key in ("devices", "num_nodes")]
        devices, nodes = (count if isinstance(count, int) else 1 for count in trainer)
        path = folder / folder_name(point)
        jobs.append(Job(number, path, (*shared, *overrides), point, devices, nodes))
    return jobs


def folder_name(point: Mapping[str, str]) -> str:
    """Name of a job's folder: the values of the axes, so that the same point is always found."""
    text = ",".join(f"{key}={value}" for key, value in point.items()) or "job"
    name = re.sub(r"[^\w.,=+-]", "_", text)[:_LONGEST_NAME]
    # What was replaced or cut off tells points apart too.
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(eq=False)
class Task:
    """A job's process; called here, or by submitit elsewhere, which may requeue it."""

    command: tuple[str, ...]
    variables: Mapping[str, str]  # on top of the environment
    label: str  # before each line of its output
    nodes: int = 1
    process: subprocess.Popen[str] | None = None

    def __call__(self) -> tuple[int, str]:
        """Run it, pass its output on, and return its exit code and last words."""
        with subprocess.Popen(
            self.command,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # it hears of a signal from us alone, once
        ) as self.process:
            assert self.process.stdout is not None
            lines = deque(maxlen=50)
            try:
                for line in self.process.stdout:
                    sys.stdout.write(f"{self.label}{line}")
                    sys.stdout.flush()
                    lines.append(line.strip())
            except BaseException:
                self.stop()
                raise
        code = self.process.returncode
        return code, last_words(lines) if code >= 0 else f"killed by signal {-code}"

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask it to write a checkpoint and end; asked twice, it ends at once."""
        if self.process is not None:
            self.process.send_signal(number)

    def checkpoint(self) -> "DelayedSubmission":
        """Submitit's hook before a requeue: the same command goes on from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.stop()
            self.process.wait()
        return DelayedSubmission(replace(self, process=None))

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not _FOREIGN.fullmatch(k)}
        if self.nodes > 1:
            from submitit import JobEnvironment

            place = JobEnvironment()
            kept["MASTER_ADDR"] = place.hostnames[0]
            kept["MASTER_PORT"] = str(20_000 + int(place.raw_job_id) % 20_000)
            kept["NODE_RANK"] = str(place.global_rank)
        return {**kept, **self.variables}


def last_words(lines: Sequence[str]) -> str:
    """What a process said of its end: its complaints, or its last line."""
    complaints = [line.removeprefix("mae-nas: ") for line in lines if line.startswith("mae-nas: ")]
    return "; ".join(complaints) or next((line for line in reversed(lines) if line), "")


def run_jobs(jobs: Sequence[Job], settings: LauncherSettings) -> list[Job]:
    """The jobs with their ends, in order; SIGTERM or SIGINT stops them all in order."""
    return _Runner(settings, settings.at_once(len(jobs)), len(jobs)).run(jobs)


@dataclass(eq=False)
class _Runner:
    settings: LauncherSettings
    at_once: int
    total: int
    received: int = 0  # the signal that ends the sweep
    running: set[Task] = field(default_factory=set)

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        self.gpus = _visible_gpus() if self.at_once > 1 else []
        self.slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.at_once):
            self.slots.put(slot)
        before = {n: signal.signal(n, self._stop) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            with ThreadPoolExecutor(self.at_once) as pool:
                return list(pool.map(self._one, jobs))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        for task in tuple(self.running):
            task.stop(number)

    def _one(self, job: Job) -> Job:
        label = f"[{job.number + 1}/{self.total}] "
        slot = self.slots.get()
        task = Task(_command(job), self._variables(job, slot), label, job.nodes)
        try:
            if self.received:
                return job
            words = " ".join(f"{key}={value}" for key, value in job.point.items())
            sys.stdout.write(f"{label}{words or job.folder.name}\n")
            sys.stdout.flush()
            code, reason = self._execute(task, job)
            return replace(job, code=code, reason=reason if code else "")
        finally:
            self.slots.put(slot)

    def _execute(self, task: Task, job: Job) -> tuple[int | None, str]:
        if self.settings.executor != "process":
            return self._submit(task, job)
        self.running.add(task)
        try:
            return task()
        finally:
            self.running.discard(task)

    def _submit(self, task: Task, job: Job) -> tuple[int | None, str]:
        import submitit
        from submitit.core.utils import FailedJobError, UncompletedJobError

        logs, slurm = job.folder.parent / "submitit", self.settings.slurm
        given = {key: value for key, value in slurm.items() if value is not None}
        if self.settings.executor == "slurm":
            executor = submitit.SlurmExecutor(logs)
            resources = {"nodes": job.nodes, "ntasks_per_node": 1, "gpus_per_node": job.devices}
            executor.update_parameters(job_name=job.folder.name, **resources, **given)
        else:
            executor = submitit.LocalExecutor(logs)
            executor.update_parameters(timeout_min=given["time"], gpus_per_node=job.devices)
        submitted = executor.submit(task)
        sys.stdout.write(f"{task.label}job {submitted.job_id}, log {submitted.paths.stdout}\n")
        while not submitted.done():
            if self.received:
                return None, f"job {submitted.job_id} goes on; the same command collects it"
            time.sleep(_POLL_SECONDS)
        try:
            return submitted.result()
        except (UncompletedJobError, FailedJobError) as error:
            return FAILED, str(error).strip().splitlines()[-1]

    def _variables(self, job: Job, slot: int) -> dict[str, str]:
        """Each of several jobs at once has its share of the computer."""
        sweep = job.folder.parent.name
        variables = {"WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP", sweep)}
        if self.at_once > 1 and self.settings.executor == "process":
            cores = (os.cpu_count() or 1) // (self.at_once * job.devices)
            variables["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, cores)))
            shares = max(1, len(self.gpus) // job.devices)
            first = slot % shares * job.devices
            if self.gpus:
                variables["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus[first : first + job.devices])
        return variables


def _command(job: Job) -> tuple[str, ...]:
    home = f"hydra.run.dir={quoted(str(job.folder))}"
    return (sys.executable, "-m", "mae_nas", "search", *job.arguments, "resume=auto", home)


def _visible_gpus() -> list[str]:
    import torch  # seconds, for sweeps that share a computer alone

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(number) for number in range(torch.cuda.device_count())]
