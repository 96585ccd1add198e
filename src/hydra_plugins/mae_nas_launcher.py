"""Hydra's doors to our sweeps: it accepts plug-ins of this package only."""

from collections.abc import Mapping, Sequence
from typing import Literal

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mae_nas.cli.jobs import plan_jobs
from mae_nas.cli.launcher import LauncherSettings, run_jobs


class MaeNasLauncher(Launcher):
    """Starts every job of a sweep as a process of its own, see `mae_nas.cli.launcher`.

    Hydra's other launchers run jobs by its own code, under which Lightning starts the other ranks
    of a job as further sweeps, and wandb takes all jobs for one run.

    Args:
        parallel: jobs at once; `auto` is one, with slurm all.
        executor: `process` runs jobs here; `slurm` submits them by submitit, which requeues those
            that are pre-empted or out of time; `local` does what slurm does, on this computer.
        slurm: options of sbatch.
    """

    def __init__(
        self,
        parallel: int | Literal["auto"],
        executor: Literal["process", "slurm", "local"],
        slurm: Mapping[str, object],
    ) -> None:
        self.settings = LauncherSettings(parallel, executor, slurm)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        del task_function  # jobs are commands
        self.loader, self.config = hydra_context.config_loader, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        configs = [self._composed(job) for job in job_overrides]
        jobs = plan_jobs(self.config, configs, job_overrides, initial_job_idx)
        returns = []
        for job in run_jobs(jobs, self.settings):
            returned = JobReturn(overrides=job.arguments, status=JobStatus.COMPLETED)
            returned.return_value = job
            returns.append(returned)
        return returns

    def _composed(self, overrides: Sequence[str]) -> DictConfig | None:
        """None for a point that cannot be; its job will say why."""
        try:
            return self.loader.load_sweep_config(self.config, list(overrides))
        except HydraException:
            return None


class MaeNasSweeper(BasicSweeper):
    """Hydra's own, but a point that cannot be composed does not refuse the others."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing: each job judges itself."""
