"""Hydra's doors to our sweeps: it accepts plug-ins of this package only.

What is handed to them as Hydra's task function is the plan, whose jobs are composed already.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mae_nas.cli.launcher import LauncherSettings, Plan, run_jobs


class MaeNasLauncher(Launcher):
    """Starts every job of a sweep as a process of its own, see `mae_nas.cli.launcher`.

    Args: those of `LauncherSettings`.
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
        del hydra_context, config
        assert isinstance(task_function, Plan)
        self.plan = task_function

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        del job_overrides, initial_job_idx  # all of the plan's, see the sweeper
        returns = []
        for job in run_jobs(self.plan.jobs, self.settings, self.plan.signals):
            returned = JobReturn(overrides=job.arguments, status=JobStatus.COMPLETED)
            returned.return_value = job
            returns.append(returned)
        return returns


class MaeNasSweeper(Sweeper):
    """Hands all jobs to the launcher at once.

    Hydra's own would compose each again, and refuse all where one cannot be.

    Args:
        params: axes from a file, `{KEY: "a,b"}`.
    """

    def __init__(self, params: Mapping[str, str] | None) -> None:
        self.params = params  # read when the jobs were planned

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        assert isinstance(task_function, Plan)
        self.plan = task_function

    def sweep(self, arguments: list[str]) -> Any:  # noqa: ANN401 - Hydra's
        del arguments
        assert self.launcher is not None
        return self.launcher.launch([job.arguments for job in self.plan.jobs], 0)
