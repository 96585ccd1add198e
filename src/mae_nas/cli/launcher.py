"""How the jobs of a sweep run: each a process of its own, here or on a cluster.

So they are right with several devices, with wandb, and where one of them dies. Nothing here imports
torch unless jobs share the GPUs.
"""

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
from types import FrameType
from typing import TYPE_CHECKING, Literal

from mae_nas.checks import Checked
from mae_nas.cli.codes import FAILED
from mae_nas.cli.jobs import Job
from mae_nas.stopping import SIGNALS

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

# Of whoever started the sweep: a job that inherited them would take itself for a rank of it.
_FOREIGN = re.compile(
    r"((LOCAL|GLOBAL|GROUP|NODE)_)?RANK|WORLD_SIZE|MASTER_(ADDR|PORT)|SLURM_\w+|MAE_NAS_DECIDED"
)
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
    """The jobs with their ends, in order; a signal goes to all that run, and no other starts."""
    return _Runner(settings, settings.at_once(len(jobs)), len(jobs)).run(jobs)


@dataclass(eq=False)
class _Runner:
    settings: LauncherSettings
    at_once: int
    total: int
    received: int = 0  # the signal that ends the sweep
    running: set[Task] = field(default_factory=set)

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        wants = self.at_once > 1 and any(job.on_gpus for job in jobs)
        self.gpus = _visible_gpus() if wants else []
        self.slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.at_once):
            self.slots.put(slot)
        before = {n: signal.signal(n, self._stop) for n in SIGNALS}
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
        task = Task(job.command, self._variables(job, slot), label, job.nodes)
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
        gpus = job.devices if job.on_gpus else 0
        if self.settings.executor == "slurm":
            executor = submitit.SlurmExecutor(logs)
            given |= {"nodes": job.nodes, "ntasks_per_node": 1}
            given |= {"gpus_per_node": gpus} if gpus else {}
            executor.update_parameters(job_name=job.folder.name, **given)
        else:
            executor = submitit.LocalExecutor(logs)
            executor.update_parameters(timeout_min=given["time"], gpus_per_node=gpus)
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


def _visible_gpus() -> list[str]:
    import torch  # seconds, for sweeps that share a computer alone

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(number) for number in range(torch.cuda.device_count())]
