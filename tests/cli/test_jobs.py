import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from mae_nas.cli.jobs import Job, LauncherSettings, Task, folder_name, last_words, run_jobs

PRINT = (sys.executable, "-c", "import os; print(sorted(k for k in os.environ if 'RANK' in k))")


def test_a_folder_is_named_by_the_values_of_the_axes() -> None:
    assert folder_name({"mask.ratio": "0.2", "seed": "1"}) == "mask.ratio=0.2,seed=1"


def test_points_that_look_alike_as_files_have_folders_of_their_own() -> None:
    points = [{"data.root": root} for root in ("/a/b", "/a_b", "/a" + "b" * 200, "/a" + "b" * 201)]
    names = [folder_name(point) for point in points]
    assert len(set(names)) == 4
    assert all(len(name) < 150 and "/" not in name for name in names)


def test_a_job_takes_no_rank_from_whoever_started_the_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "MY_RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "1")
    assert Task(PRINT, {}, "> ")() == (0, "['MY_RANK']")
    assert capsys.readouterr().out == "> ['MY_RANK']\n"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["a", "mae-nas: x: no such key", "mae-nas: y: wrong", "bye"], "x: no such key; y: wrong"),
        (["step 1", "the loss became NaN", ""], "the loss became NaN"),
        ([], ""),
    ],
)
def test_the_reason_is_what_the_process_complained_of(lines: list[str], words: str) -> None:
    assert last_words(lines) == words


def test_a_killed_job_says_by_which_signal() -> None:
    kill = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert Task(kill, {}, "")() == (-9, "killed by signal 9")


def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, count: int) -> list[Job]:
    """Jobs whose command is `program`, given the path of its folder."""
    monkeypatch.setattr(
        "mae_nas.cli.jobs._command",
        lambda job: (sys.executable, "-c", program, str(tmp_path / str(job.number))),
    )
    return [Job(i, tmp_path / str(i), (), {"seed": str(i)}) for i in range(count)]


SLOW = "import sys, time, pathlib; pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"


def test_a_signal_ends_the_running_jobs_and_starts_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planned = jobs(monkeypatch, tmp_path, SLOW, 4)

    def interrupt() -> None:
        while not ((tmp_path / "0").exists() and (tmp_path / "1").exists()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    ended = run_jobs(planned, LauncherSettings(2, "process", {}))
    assert [job.code for job in ended] == [-signal.SIGTERM, -signal.SIGTERM, None, None]
    assert not (tmp_path / "2").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_jobs_at_once_share_the_gpus_and_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    say = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])"
    planned = jobs(monkeypatch, tmp_path, f"{say}; raise SystemExit(1)", 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    ended = run_jobs(planned, LauncherSettings(2, "process", {}))
    assert {job.reason for job in ended} == {"5 3", "7 3"}


@pytest.mark.parametrize(
    ("parallel", "executor", "message"),
    [
        (0, "process", "hydra.launcher.parallel: 0 is not a number of jobs, or auto"),
        (1, "proces", "hydra.launcher.executor: 'proces' is not one of process, slurm, local"),
        (1, "slurm", "hydra.launcher.executor=slurm: there is no sbatch here"),
    ],
)
def test_settings_that_cannot_be_are_refused(parallel: int, executor: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        LauncherSettings(parallel, executor, {})  # type: ignore[arg-type]


def test_all_jobs_are_handed_to_a_cluster_and_one_at_a_time_run_here() -> None:
    settings = LauncherSettings("auto", "process", {})
    assert settings.at_once(8) == 1
    object.__setattr__(settings, "executor", "slurm")  # a computer without sbatch refuses it
    assert settings.at_once(8) == 8
