"""`mae-nas search -m`: from overrides with several values to jobs, a table and a picture."""

from collections.abc import Sequence
from itertools import chain, product
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mae_nas.checks import raise_all
from mae_nas.cli.codes import COLLAPSED, CONFIGURATION, DONE, FAILED, INTERRUPTED, REQUEUE
from mae_nas.cli.compose import RUN_DIR, compose
from mae_nas.cli.jobs import Job
from mae_nas.cli.library import CONFIG, open_library
from mae_nas.runs.listing import RunState, columns, look
from mae_nas.runs.sweeps import SweepRow, mistakes, write_table


def run_sweep(overrides: list[str], config_dir: Path | None) -> tuple[str, int]:
    """Run every job whose result is not there yet; what to print at the end, and the exit code."""
    values, problems = split_values(overrides), []
    for text in chain(*values):
        key, _, value = text.lstrip("+").partition("=")
        if key == "resume" and value != "auto":
            problems.append("resume: the jobs of a sweep always go on (resume=auto); leave it out")
        if key in (RUN_DIR, "hydra.sweep.subdir"):
            problems.append(f"{key}: jobs lie in hydra.sweep.dir, named by their values")
    raise_all(dict.fromkeys(problems))
    added = judge_names(values, config_dir)
    keys = [text.lstrip("+").partition("=")[0] for text in overrides]
    texts = [
        f"++{text.lstrip('+')}" if key in added else text
        for key, text in zip(keys, overrides, strict=True)
    ]
    jobs = _multirun(texts, config_dir)
    rows, folder = [_row(job) for job in jobs], jobs[0].folder.parent
    write_table(rows, folder / "sweep.csv")
    lines = [columns([row.cells() for row in rows]), f"table    {folder / 'sweep.csv'}"]
    if None in {job.code for job in jobs}:
        lines.append("to go on  the same command again")
    if any(row.has_result for row in rows):
        from mae_nas.runs.sweep_plots import plot_sweep  # matplotlib, seconds

        lines += [f"picture  {path}" for path in plot_sweep(rows, folder)]
    return "\n".join(lines), _code(jobs, rows)


def judge_names(values: Sequence[Sequence[str]], config_dir: Path | None) -> frozenset[str]:
    """Raise what is wrong with the names of a value in every point that has it, before any starts.

    A point that cannot be while others with its values can is left to its job, a row of the table.

    Args:
        values: of each override.
        config_dir: the user's own configurations.

    Returns:
        Keys that only a class knows, see `Composed`.
    """
    added: frozenset[str] = frozenset()
    tried: dict[tuple[str, ...], str] = {}  # what is wrong with each point
    problems: list[str] = []
    for axis, choices in enumerate(values):
        for value in choices:
            here = [[value] if place == axis else other for place, other in enumerate(values)]
            for point in product(*here):
                if point not in tried:
                    tried[point] = ""
                    try:
                        added |= compose(list(point), config_dir).added
                    except ValueError as error:
                        tried[point] = str(error)
                if not tried[point]:
                    break
            else:
                problems += tried[next(product(*here))].splitlines()
    raise_all(dict.fromkeys(problems))
    return added


def split_values(overrides: Sequence[str]) -> list[list[str]]:
    """Each override as one text for each of its values."""
    parser, points = OverridesParser.create(), []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:  # `compose` says what is wrong with it
            points.append([text])
            continue
        if not override.is_sweep_override():
            points.append([text])
        elif override.is_discrete_sweep():
            key = override.get_key_element()
            points.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            raise ValueError(f"{text}: a sweep needs values that can be listed: a,b or range(0,5)")
    return points


def _multirun(texts: list[str], config_dir: Path | None) -> list[Job]:
    with open_library(config_dir) as library:
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            batches = hydra.multirun(
                CONFIG, _unused, [*library.search_path, *texts], with_log_configuration=False
            )
        except (HydraException, OmegaConfBaseException) as error:
            refused = isinstance(error.__cause__, ValueError)  # by our launcher
            text = str(error.__cause__) if refused else " ".join(str(error).split())
            raise ValueError(text) from error
    return [returned.return_value for returned in chain(*batches)]


def _unused(_config: object) -> None:
    """Hydra's task function; our launcher starts commands instead."""


def _row(job: Job) -> SweepRow:
    has_run = job.code in (DONE, COLLAPSED, REQUEUE, INTERRUPTED)  # else it may be another's
    run = look(job.folder) if has_run else RunState(job.folder, "")
    # A refused configuration leaves no folder; where there is one, it was the folder itself.
    refused = "failed" if job.folder.exists() else "impossible"
    statuses = {DONE: run.state, COLLAPSED: run.state, CONFIGURATION: refused}
    statuses |= {REQUEUE: "stopped", INTERRUPTED: "stopped"}
    status = "waiting" if job.code is None else statuses.get(job.code, "failed")
    return SweepRow(job.number, job.point, status, run, job.reason)


def _code(jobs: Sequence[Job], rows: Sequence[SweepRow]) -> int:
    if mistakes(rows):
        return FAILED
    codes = {job.code for job in jobs}
    if INTERRUPTED in codes:
        return INTERRUPTED
    return REQUEUE if REQUEUE in codes or None in codes else DONE
