"""`mae-nas search -m`, `train -m`: from overrides with several values to jobs and a table."""

from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

from mae_nas.checks import raise_all
from mae_nas.cli.codes import CONFIGURATION, DONE, FAILED, REQUEUE, is_in_order, stopped_by
from mae_nas.cli.compose import RUN_DIR, SWEEP_DIR
from mae_nas.cli.jobs import Axis, Job, plan_jobs, refuse_other_configurations, split_values
from mae_nas.cli.launcher import Plan, Signals
from mae_nas.cli.library import open_library
from mae_nas.runs.listing import RunState, columns, look
from mae_nas.runs.sweeps import SweepRow, mistakes, refuse_other_axes, settled, write_table


def run_sweep(verb: str, overrides: list[str], config_dir: Path | None) -> tuple[str, int]:
    """Run every job whose result is not there yet; what to print at the end, and the exit code."""
    signals = Signals()
    try:
        with signals.listening():
            return _run_sweep(verb, overrides, config_dir, signals)
    except KeyboardInterrupt:
        return "stopped before a job started", stopped_by(signals.received)


def _run_sweep(
    verb: str, overrides: list[str], config_dir: Path | None, signals: Signals
) -> tuple[str, int]:
    raise_all(line for axis in split_values(overrides, ()) for line in _misuses(axis))
    planned, common = plan_jobs(overrides, config_dir, verb)
    folder = planned[0].folder.parent
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; {SWEEP_DIR} names a folder")
    table = folder / "sweep.csv"
    refuse_other_axes(table, planned[0].point)
    refuse_other_configurations(planned)
    jobs = _multirun(Plan(planned, signals), common, config_dir)
    rows = settled([_row(job) for job in jobs])
    write_table(rows, table)
    lines = [columns([row.cells() for row in rows]), f"table    {table}"]
    is_whole = not any(row.status in ("stopped", "waiting") for row in rows)
    if not is_whole:
        lines.append("to go on  the same command again")
    if planned[0].point and any(row.has_result for row in rows):
        from mae_nas.runs.sweep_plots import plot_sweep  # matplotlib, seconds

        lines += [f"picture  {path}" for path in plot_sweep(rows, folder)]
    code = DONE if is_whole else REQUEUE
    code = stopped_by(signals.received) if signals.received else code
    return "\n".join(lines), FAILED if mistakes(rows) else code


def _multirun(plan: Plan, common: list[str], config_dir: Path | None) -> list[Job]:
    """The jobs with their ends: Hydra's multirun, by our sweeper and launcher."""
    verb = plan.jobs[0].verb
    with open_library(verb, config_dir) as library:
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        texts = [*library.search_path, *common]
        try:
            returns = hydra.multirun(verb, plan, texts, with_log_configuration=False)
        except HydraException as error:
            refused = isinstance(error.__cause__, ValueError)  # by the launcher's settings
            raise ValueError(str(error.__cause__ if refused else error)) from error
    return [returned.return_value for returned in returns]


def _misuses(axis: Axis) -> list[str]:
    """What a sweep decides itself, a line each."""
    key = axis.key
    if key == "resume" and axis.texts != ["resume=auto"]:
        return ["resume: the jobs of a sweep always go on (resume=auto); leave it out"]
    if key in (RUN_DIR, "hydra.sweep.subdir"):
        return [f"{key}: jobs lie in hydra.sweep.dir, named by their values"]
    if key.startswith("hydra.sweeper"):
        return [f"{key}: not used; hydra.launcher.parallel says how many jobs run at once"]
    if key.startswith("hydra.") and axis.is_swept:
        return [f"{key}: one value for the whole sweep"]
    return []


def _row(job: Job) -> SweepRow:
    """What became of a job: its run's own files are the truth, if they are surely its own."""
    ended, said = job.ended, look(job.folder)
    run = said if ended or is_in_order(job.code) else RunState(job.folder, "")
    # A refused configuration leaves no folder; where there is one, it was the folder itself.
    refused = "failed" if job.folder.exists() else "impossible"
    statuses = {None: "waiting", CONFIGURATION: refused}
    in_order = "stopped" if is_in_order(job.code) else "failed"
    status = ended or statuses.get(job.code, in_order)
    return SweepRow(job.number, job.point, status, run, "" if ended else job.reason, job.verb)
