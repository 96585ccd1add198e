import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from mae_nas.cli.codes import DONE, FAILED, REQUEUE
from mae_nas.cli.jobs import Job
from mae_nas.cli.launcher import LauncherSettings, Signals, Task, last_words, run_jobs

PRINT = (sys.executable, "-c", "import os; print(sorted(k for k in os.environ if 'RANK' in k))")


def test_a_job_takes_no_rank_from_whoever_started_the_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "MY_RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "1")
    assert Task(PRINT, {}, "> ")() == (0, "['MY_RANK']")
    assert capsys.readouterr().out == "> ['MY_RANK']\n"


def test_a_job_knows_that_it_is_one() -> None:
    command = (sys.executable, "-c", "import os; print(os.environ['MAE_NAS_IN_SWEEP'])")
    assert Task(command, {}, "")() == (0, "1")


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
        Job, "command", property(lambda job: (sys.executable, "-c", program, str(job.folder)))
    )
    return [Job(i, tmp_path / str(i), "search", (), {"seed": str(i)}) for i in range(count)]


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
    signals = Signals()
    with signals.listening():
        ended = run_jobs(planned, LauncherSettings(2, "process", {}), signals)
    assert [job.code for job in ended] == [REQUEUE, REQUEUE, None, None]
    assert not (tmp_path / "2").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("executor", ["process", pytest.param("local", marks=pytest.mark.slow)])
def test_jobs_at_once_share_the_gpus_and_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, executor: Literal["process", "local"]
) -> None:
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "WANDB_RUN_GROUP")
    say = f"import os; print(*(os.environ[name] for name in {names}))"
    planned = jobs(monkeypatch, tmp_path, f"{say}; raise SystemExit(1)", 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    ended = run_jobs(planned, LauncherSettings(2, executor, {}), Signals())
    assert {job.reason for job in ended} == {f"{gpu} 3 {tmp_path.name}" for gpu in "57"}


@pytest.mark.parametrize("visible", ["", "5,7"])
def test_a_local_job_alone_sees_no_other_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str
) -> None:
    program = "import os; print('sees', os.environ['CUDA_VISIBLE_DEVICES']); raise SystemExit(1)"
    planned = jobs(monkeypatch, tmp_path, program, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (ended,) = run_jobs(planned, LauncherSettings(1, "local", {}), Signals())
    assert ended.reason == f"sees {visible[:1]}".strip()


def test_jobs_of_several_sizes_share_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = "import os; print(os.environ['CUDA_VISIBLE_DEVICES']); raise SystemExit(1)"
    planned = [
        replace(job, config={"trainer": {"devices": 1 + job.number % 2}})
        for job in jobs(monkeypatch, tmp_path, program, 4)
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    ended = run_jobs(planned, LauncherSettings(2, "process", {}), Signals())
    allowed = {1: {"4", "6"}, 2: {"4,5", "6,7"}}
    assert all(job.reason in allowed[job.devices] for job in ended)


@pytest.mark.parametrize("executor", ["process", "local"])
def test_several_nodes_need_a_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, executor: Literal["process", "local"]
) -> None:
    (job,) = jobs(monkeypatch, tmp_path, SLOW, 1)
    job = replace(job, config={"trainer": {"num_nodes": 2}})
    (ended,) = run_jobs([job], LauncherSettings(1, executor, {}), Signals())
    assert ended.code == FAILED
    assert ended.reason.startswith(f"trainer.num_nodes=2: executor {executor} has this computer")
    assert not job.folder.exists()


def test_a_job_that_cannot_be_started_leaves_the_rest_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = property(lambda job: ("echo" if job.number else str(tmp_path / "none"),))
    monkeypatch.setattr(Job, "command", command)
    planned = [Job(number, tmp_path / str(number), "search", (), {}) for number in range(2)]
    ended = run_jobs(planned, LauncherSettings(1, "process", {}), Signals())
    assert [job.code for job in ended] == [FAILED, DONE]
    assert "No such file" in ended[0].reason


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


def test_all_jobs_are_handed_to_a_cluster_and_one_at_a_time_run_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/sbatch")
    assert LauncherSettings("auto", "process", {}).at_once(8) == 1
    assert LauncherSettings("auto", "slurm", {}).at_once(8) == 8


FAKES = {
    "sbatch": """cp "$1" "$LOGS/submitted"
export SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0
export SLURM_NODEID=0
sh "$LOGS/submitted" > "$LOGS/output" 2>&1 &
echo Submitted batch job 7""",
    "srun": f"""while [ "$1" != {sys.executable} ]; do shift; done
exec "$@" """,
    "sacct": "printf 'JobID|State|NodeList\\n7|RUNNING|n1\\n'",
}


def test_a_cluster_gets_the_job_and_the_options_that_were_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LOGS", str(tmp_path))
    (job,) = jobs(monkeypatch, tmp_path / "sweep", "print('no room'); raise SystemExit(1)", 1)
    job = replace(job, config={"trainer": {"devices": 2}})
    slurm = {"partition": "long", "qos": None, "time": 90}
    slurm["additional_parameters"] = {"nodelist": "n1"}
    (ended,) = run_jobs([job], LauncherSettings("auto", "slurm", slurm), Signals())
    assert (ended.code, ended.reason) == (1, "no room"), (tmp_path / "output").read_text()
    lines = set((tmp_path / "submitted").read_text().splitlines())
    options = {"partition=long", "time=90", "nodelist=n1", "gpus-per-node=2", "job-name=0"}
    assert {f"#SBATCH --{option}" for option in options} <= lines
    assert "qos" not in "".join(lines)
