import csv
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mae_nas.cli import jobs, sweep
from mae_nas.cli.jobs import Job
from mae_nas.cli.main import main
from mae_nas.runs.files import write_json
from mae_nas.runs.folder import RunFolder

SWEEP = ["search", "-m", "seed=0,1", "hydra.sweep.dir=s"]


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            ["mask.ratoi=0.1,0.2", "decoder=simmim,foo"],
            [
                "mask.ratoi: no such key; did you mean mask.ratio?",
                "decoder=foo: no such option (custom, hierarchical, simmim, unet)",
            ],
        ),
        (
            ["seed=0,1", "resume=null"],
            ["resume: the jobs of a sweep always go on (resume=auto); leave it out"],
        ),
        (
            ["seed=0,1", "hydra.run.dir=x"],
            ["hydra.run.dir: jobs lie in hydra.sweep.dir, named by their values"],
        ),
        (
            ["seed=0,1", "hydra.sweeper.max_batch_size=1"],
            [
                "hydra.sweeper.max_batch_size: not used; "
                "hydra.launcher.parallel says how many jobs run at once"
            ],
        ),
        (
            ["seed=0,1", "hydra.launcher.parallel=1,2"],
            ["hydra.launcher.parallel: one value for the whole sweep"],
        ),
        (
            ["seed=interval(0,1)"],
            ["seed=interval(0,1): a sweep needs values that can be listed: a,b or range(0,5)"],
        ),
        (
            ["seed=range(0,0)"],
            ["seed=range(0,0): a sweep needs values that can be listed: a,b or range(0,5)"],
        ),
        (
            ["decoder=glob(*)"],
            ["decoder=glob(*): a sweep needs values that can be listed: a,b or range(0,5)"],
        ),
        (["seed=1"], ["-m: nothing to sweep over; give several values, as in seed=0,1"]),
        (
            ["--cfg", "job"],
            ["--cfg: shows one configuration; leave out -m and choose one value each"],
        ),
    ],
)
def test_a_wrong_sweep_starts_nothing(
    overrides: list[str],
    lines: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["search", "-m", *overrides]) == 2
    assert capsys.readouterr().err == "".join(f"mae-nas: {line}\n" for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_wrong_settings_of_the_launcher_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["search", "-m", "seed=0,1", "hydra.launcher.parallel=0"]) == 2
    message = "hydra.launcher.parallel: 0 is not a number of jobs, or auto"
    assert capsys.readouterr().err == f"mae-nas: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_only_m_starts_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "seed=0,1"]) == 2
    assert capsys.readouterr().err == (
        "mae-nas: seed=0,1: several values are a sweep, with -m; "
        "a list is written seed=[a,b], text with commas 'seed=\"a,b\"'\n"
    )


def rows(folder: Path) -> list[tuple[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return [(row["status"], row["reason"]) for row in csv.DictReader(file)]


def finish(seed: int) -> None:
    """Put a result where the sweep's job would leave it."""
    planned, _ = jobs.plan_jobs(SWEEP[2:], None)
    folder = RunFolder(planned[seed].folder)
    folder.path.mkdir(parents=True)
    folder.write_config(planned[seed].config or {}, [])
    reading = {"step": 4, "verdict": "ok", "held_out_loss": 0.5, "skips": {"normal": 2}}
    write_json(folder.genotype, reading)
    chance = {"normal": {"mean": 1.25}}
    write_json(folder.summary, {"state": "finished", "skip_chance": chance, "wall_seconds": 3.0})


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def command(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let every job be a shell's `script`, given its folder."""
    made = property(lambda job: ("sh", "-c", script, "sh", str(job.folder)))
    monkeypatch.setattr(Job, "command", made)


def test_a_result_that_is_there_is_a_row_without_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(monkeypatch, "echo started; exit 1")
    finish(0)
    assert main(SWEEP) == 1
    assert rows(tmp_path / "s") == [("finished", ""), ("failed", "started")]
    finish(1)
    assert main(SWEEP) == 0
    assert rows(tmp_path / "s") == [("finished", "")] * 2


def test_a_stopped_sweep_keeps_the_rows_of_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(1)
    command(monkeypatch, f"kill -TERM {os.getpid()}; exec sleep 60")
    assert main(SWEEP) == 75
    assert rows(tmp_path / "s") == [("stopped", ""), ("finished", "")]


def test_the_reason_is_the_runs_own_whatever_was_said_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = """mkdir -p $1; echo '{"state": "failed", "reason": "NaN"}' > $1/summary.json"""
    command(monkeypatch, f"{record}; echo to upload the run; exit 1")
    assert main(SWEEP) == 1
    assert rows(tmp_path / "s") == [("failed", "NaN")] * 2
    command(monkeypatch, "echo mae-nas: out of memory; exit 1")  # which left no record
    assert main(SWEEP) == 1
    assert rows(tmp_path / "s") == [("failed", "out of memory")] * 2


def test_a_sweep_goes_on_when_nobody_reads_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(monkeypatch, "echo one; echo mae-nas: two; exit 75")
    ear, mouth = os.pipe()
    os.close(ear)
    with os.fdopen(mouth, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(SWEEP) == 75
    assert rows(tmp_path / "s") == [("stopped", "")] * 2


def test_a_job_that_outlived_its_sweep_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(1)
    folder = RunFolder(tmp_path / "s" / "seed=1")
    folder.summary.rename(tmp_path / "result")
    folder.lock()
    starts = f"test -e {folder.summary} && echo after"
    command(monkeypatch, f"{starts}; exit 75")

    looked, is_running = threading.Event(), Job.is_running

    def look(job: Job) -> bool:
        assert is_running.fget is not None
        found = is_running.fget(job)
        if found:
            looked.set()
        return found

    monkeypatch.setattr(Job, "is_running", property(look))

    def end() -> None:
        looked.wait(60)
        time.sleep(0.5)  # in which job 0 is not to start: one at a time
        (tmp_path / "result").rename(folder.summary)
        folder.release()

    threading.Thread(target=end).start()
    assert main(SWEEP) == 75
    assert rows(tmp_path / "s") == [("stopped", ""), ("finished", "")]
    assert capsys.readouterr().out.startswith(
        "[2/2] seed=1: still runs, from an earlier sweep; waiting for its end\n"
        "[2/2] seed=1: finished already\n"
        "[1/2] seed=0\n"
        "[1/2] after\n"
    )


def test_a_job_that_has_a_result_has_no_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(0)
    finish(1)
    monkeypatch.setattr(sweep, "_multirun", lambda plan, *_: refused(plan.jobs))
    assert main(SWEEP) == 0
    assert rows(tmp_path / "s") == [("finished", "")] * 2


def refused(planned: list[Job]) -> list[Job]:
    return [replace(job, code=2, reason="s is in use by pid 1") for job in planned]


def test_a_sweep_over_other_axes_needs_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, "exit 1")
    main(SWEEP)
    capsys.readouterr()
    before = rows(tmp_path / "s")
    assert main([*SWEEP, "mask.ratio=0.2,0.4"]) == 2
    assert capsys.readouterr().err == (
        "mae-nas: hydra.sweep.dir: s is of a sweep over seed, "
        "this command line over seed, mask.ratio; choose another\n"
    )
    assert rows(tmp_path / "s") == before


def test_a_strangers_table_is_shown_and_not_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/sweep.csv").write_text("\x1b[2J,job\n")
    assert main(SWEEP) == 2
    assert "s is of a sweep over \\x1b[2J, this command line over seed" in capsys.readouterr().err


def test_a_sweeps_folder_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s").touch()
    assert main(SWEEP) == 2
    assert capsys.readouterr().err == "mae-nas: s is a file; hydra.sweep.dir names a folder\n"


def test_a_sweep_of_another_configuration_needs_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(1)
    command(monkeypatch, "exit 1")
    assert main([*SWEEP, "supernet.width=5"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("mae-nas: hydra.sweep.dir: s is of a sweep with another configuration (")
    assert "(supernet.width: the run has " in line
    assert not (tmp_path / "s/sweep.csv").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_before_the_jobs_starts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    monkeypatch.setattr(sweep, "plan_jobs", lambda *_: os.kill(os.getpid(), number))
    assert main(SWEEP) == code
    assert list(tmp_path.iterdir()) == []


def test_a_signal_after_the_jobs_leaves_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(0)
    finish(1)
    write = sweep.write_table
    monkeypatch.setattr(
        sweep, "write_table", lambda *given: (os.kill(os.getpid(), signal.SIGTERM), write(*given))
    )
    assert main(SWEEP) == 75
    assert rows(tmp_path / "s") == [("finished", "")] * 2
    assert (tmp_path / "s" / "sweep.png").exists()


def test_a_file_of_the_users_hides_none_of_pythons(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('not the queue that was meant')")
    for seed in "01":
        (tmp_path / "s" / f"seed={seed}").mkdir(parents=True)
        (tmp_path / "s" / f"seed={seed}" / "mine.txt").touch()
    assert main(SWEEP) == 1
    for status, reason in rows(tmp_path / "s"):
        assert status == "failed"
        assert "is not empty (mine.txt, …)" in reason
