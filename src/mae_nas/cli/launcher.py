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
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING, Literal

from mae_nas.checks import Checked, first_line
from mae_nas.cli.codes import DONE, FAILED, is_in_order, stopped_by
from mae_nas.cli.jobs import Job
from mae_nas.cli.launch import DECIDED, IN_SWEEP
from mae_nas.cli.logs import say
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.listing import look
from mae_nas.stopping import SIGNALS

if TYPE_CHECKING:
    import submitit
    from submitit.helpers import DelayedSubmission

# Of whoever started the sweep: a job that inherited them would take itself for a rank of it.
_FOREIGN = re.compile(
    r"((LOCAL|GLOBAL|GROUP|NODE)_)?RANK|WORLD_SIZE|MASTER_(ADDR|PORT)|SLURM_\w+|" + DECIDED
)
_POLL_SECONDS = 0.5
_REQUEUES = 10_000  # of a job that runs out of time


@dataclass(frozen=True)
class LauncherSettings(Checked):
    """How the jobs are run.

    Hydra's other launchers run jobs by its own code, under which Lightning starts the other ranks
    of a job as further sweeps, and wandb takes all jobs for one run.

    Args:
        parallel: jobs at once; `auto` is one, with slurm all.
        executor: `process` runs jobs here; `slurm` submits them by submitit, which requeues those
            that are pre-empted or out of time; `local` does what slurm does, on this computer.
        slurm: options of sbatch.
    """

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
        if self.executor in ("slurm", "local") and find_spec("submitit") is None:
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
    asked: int = 0  # the signal that it was to be stopped with

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
            if self.asked:  # before there was a process
                self.stop(self.asked)
            lines: deque[str] = deque(maxlen=50)
            # A thread, or nobody would read while a signal's handler waits for the end.
            reader = threading.Thread(target=self._pass_on, args=(self.process.stdout, lines))
            reader.start()
            try:
                reader.join()
            except BaseException:
                self.stop()
                raise
        code = self.process.returncode
        return code, last_words(lines) if code >= 0 else f"killed by signal {-code}"

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask it to write a checkpoint and end; asked twice, it ends at once."""
        self.asked = number
        if self.process is not None:
            self.process.send_signal(number)

    def _pass_on(self, output: Iterable[str], lines: deque[str]) -> None:
        for line in output:
            say(f"{self.label}{line.rstrip()}")
            lines.append(line.strip())

    def checkpoint(self) -> "DelayedSubmission":
        """Submitit's hook before a requeue: the same command goes on from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.stop()
            self.process.wait()
        return DelayedSubmission(replace(self, process=None, asked=0))

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not _FOREIGN.fullmatch(k)}
        kept[IN_SWEEP] = "1"
        kept["PYTHONSAFEPATH"] = "1"  # a queue.py of the user's is not to be taken for Python's
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


class Signals:
    """Where a sweep's signals go: at first they end it, once jobs have started they end those."""

    def __init__(self) -> None:
        self.received = 0  # the last one
        self.has_started = False
        self.running: set[Task] = set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals come here inside; the handlers of before are put back."""
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        if not self.has_started:
            raise KeyboardInterrupt
        if self.running:
            say("Stopping the sweep; jobs end after a last reading (again to stop at once)")
        for task in tuple(self.running):
            task.stop(number)


@dataclass(frozen=True)
class Plan:
    """A sweep's jobs, and where its signals go; Hydra carries it as its task function."""

    jobs: Sequence[Job]
    signals: Signals

    def __call__(self, _config: object) -> None:
        """Nothing: jobs are commands."""


def run_jobs(jobs: Sequence[Job], settings: LauncherSettings, signals: Signals) -> list[Job]:
    """The jobs with their ends, in order; those that have one already are not started."""
    runner = _Runner(jobs, settings, signals)
    jobs[0].folder.parent.mkdir(parents=True, exist_ok=True)
    signals.has_started = True
    # Those that outlived an earlier sweep count first among the jobs that run at once.
    order = sorted(jobs, key=lambda job: not job.is_running)
    with ThreadPoolExecutor(runner.at_once) as pool:
        ends = [pool.submit(runner.run, job) for job in order]
        # Python hears a signal that came just before its main thread slept when that wakes.
        while wait(ends, timeout=_POLL_SECONDS).not_done:
            pass
        return sorted((end.result() for end in ends), key=lambda job: job.number)


class _Runner:
    def __init__(self, jobs: Sequence[Job], settings: LauncherSettings, signals: Signals) -> None:
        self.settings, self.signals = settings, signals
        self.total, self.at_once = len(jobs), settings.at_once(len(jobs))
        self.devices = max(job.devices for job in jobs)
        # A job alone sees all of them, but submitit's local one what it is told.
        shares = settings.executor == "local" or (
            settings.executor == "process" and self.at_once > 1
        )
        self.gpus = _visible_gpus() if shares and any(job.on_gpus for job in jobs) else []
        self.slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.at_once):
            self.slots.put(slot)

    def run(self, job: Job) -> Job:
        label = f"[{job.number + 1}/{self.total}] "
        words = " ".join(f"{key}={value}" for key, value in job.point.items()) or job.folder.name
        slot = self.slots.get()
        task = Task(job.command, self._variables(job, slot), label, job.nodes)
        try:
            if job.is_running:
                say(f"{label}{words}: still runs, from an earlier sweep; waiting for its end")
            while job.is_running and not self.signals.received:
                time.sleep(_POLL_SECONDS)
            if self.signals.received:
                return job
            ended = job.ended
            say(f"{label}{words}{ended and f': {ended} already'}")
            if ended:
                return replace(job, code=DONE)
            before = job.recorded
            code, reason = self._execute(task, job)
            if code == FAILED and job.recorded != before:  # the run's own word, whatever was last
                reason = look(job.folder).reason or reason
            if self.signals.received and code is not None and code < 0:  # too young to end in order
                code = stopped_by(self.signals.received)
            return replace(job, code=code, reason="" if is_in_order(code) else reason)
        finally:
            self.slots.put(slot)

    def _execute(self, task: Task, job: Job) -> tuple[int | None, str]:
        here = self.settings.executor
        try:
            if job.nodes > 1 and here != "slurm":
                raise ValueError(
                    f"trainer.num_nodes={job.nodes}: executor {here} has this computer alone; "
                    "use hydra.launcher.executor=slurm"
                )
            if here == "slurm":
                return self._submit(task, job)
            self.signals.running.add(task)
            if self.signals.received:
                return None, ""
            return task() if here == "process" else self._submit(task, job)
        except Exception as error:  # noqa: BLE001 - of this job; the others go on
            return FAILED, first_line(error)
        finally:
            self.signals.running.discard(task)

    def _submit(self, task: Task, job: Job) -> tuple[int | None, str]:
        # At Ctrl-C in a terminal submitit's processes, started here, would kill what they wait for.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        submitted = self._executor(job).submit(task)
        say(f"{task.label}job {submitted.job_id}, log {submitted.paths.stdout}")
        while not submitted.done():
            if task.asked and RunFolder(job.folder).signal(task.asked):
                task.asked = 0
            if self.signals.received and self.settings.executor == "slurm":
                return None, f"job {submitted.job_id} goes on; when it has ended, start this again"
            time.sleep(_POLL_SECONDS)
        return submitted.results()[0]

    def _executor(self, job: Job) -> "submitit.Executor":
        import submitit

        logs, slurm = job.folder.parent / "submitit", self.settings.slurm
        given = {key: value for key, value in slurm.items() if value is not None}
        if self.settings.executor == "local":
            executor = submitit.LocalExecutor(logs, max_num_timeout=_REQUEUES)
            executor.update_parameters(timeout_min=given.get("time", 240))
        else:
            executor = submitit.SlurmExecutor(logs, max_num_timeout=_REQUEUES)
            gpus = {"gpus_per_node": job.devices} if job.on_gpus else {}
            nodes = {"nodes": job.nodes, "ntasks_per_node": 1}
            executor.update_parameters(job_name=job.folder.name, **nodes, **gpus, **given)
        return executor

    def _variables(self, job: Job, slot: int) -> dict[str, str]:
        """Each of several jobs at once has its share of the computer."""
        sweep = job.folder.parent.name
        variables = {"WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP", sweep)}
        if self.at_once > 1 and self.settings.executor != "slurm":
            cores = (os.cpu_count() or 1) // (self.at_once * job.devices)
            variables["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, cores)))
        if self.gpus:
            shares = max(1, len(self.gpus) // self.devices)  # each as large as any job needs
            first = slot % shares * self.devices
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus[first : first + job.devices])
        return variables


def _visible_gpus() -> list[str]:
    import torch  # seconds, for sweeps that share a computer alone

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(number) for number in range(torch.cuda.device_count())]
