import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mae_nas.runs.listing import find_runs

pytestmark = pytest.mark.slow

Sweep = Callable[..., subprocess.Popen[str]]
WaitFor = Callable[..., None]
DEMO = ["experiment=demo", "trainer.max_steps=4"]
GRID = ["mask.ratio=0.2,0.6", "decoder=hierarchical,simmim", "seed=0,1"]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """`mae-nas search -m` in a process of its own, in an empty folder."""

    def start(*overrides: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mae_nas", "search", "-m", *overrides],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=400)
    return process.returncode, output


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def statuses(folder: Path) -> list[str]:
    return [row["status"] for row in table(folder)]


def starts(output: str) -> int:
    return output.count("loading torch")


@pytest.mark.parametrize("devices", [1, 2])
def test_a_grid_runs_once_and_failures_leave_the_rest_alone(
    sweep: Sweep, tmp_path: Path, devices: int
) -> None:
    grid = [*DEMO, *GRID, f"trainer.devices={devices}", "trainer.accelerator=cpu"]
    folder = tmp_path / "runs" / "sweeps" / "demo"
    in_the_way = folder / "decoder=simmim,mask.ratio=0.2,seed=1" / "mine.txt"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    (folder / "decoder=simmim,mask.ratio=0.6,seed=0").touch()
    code, output = ended(sweep(*grid))
    assert code == 1, output
    rows = table(folder)
    assert [row["overrides"] for row in rows] == [
        f"mask.ratio={r} decoder={d} seed={s}"
        for r in ("0.2", "0.6")
        for d in ("hierarchical", "simmim")
        for s in "01"
    ]
    failed = {number: row["reason"] for number, row in enumerate(rows) if row["reason"]}
    assert statuses(folder).count("finished") == 6
    assert [rows[number]["status"] for number in failed] == ["failed", "failed"]
    assert list(failed) == [3, 6]
    assert "is not empty (mine.txt, …) and not a run" in failed[3]
    assert "is a file; hydra.run.dir names a folder" in failed[6]

    in_the_way.unlink()
    (folder / "decoder=simmim,mask.ratio=0.6,seed=0").unlink()
    code, output = ended(sweep(*grid))
    assert (code, starts(output)) == (0, 2), output
    assert {"sweep.csv", "sweep.png", "sweep.svg"} <= {path.name for path in folder.iterdir()}
    first = table(folder)
    for row in first:
        run = folder / ",".join(sorted(row["overrides"].split()))
        summary = json.loads((run / "summary.json").read_text())
        assert row["loss"] == str(summary["final"]["held_out_loss"])
        assert row["skips_normal"] == str(summary["skip_counts"]["normal"])
        assert (row["status"], row["verdict"]) == ("finished", summary["verdict"])

    code, output = ended(sweep(*grid))
    assert (code, starts(output), table(folder)) == (0, 0, first)  # nothing is computed again

    shutil.rmtree(folder / "decoder=simmim,mask.ratio=0.6,seed=1")
    code, output = ended(sweep(*grid))
    assert (code, starts(output)) == (0, 1)
    again = table(folder)
    assert again[:7] == first[:7]
    assert again[7]["loss"] == first[7]["loss"]


def test_another_configuration_in_the_same_folder_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    base = [*DEMO, "seed=0,1", f"hydra.sweep.dir={tmp_path / 's'}", "hydra.launcher.parallel=2"]
    assert ended(sweep(*base))[0] == 0
    before = table(tmp_path / "s")
    code, output = ended(sweep(*base, "mask.ratio=0.3"))
    assert code == 2, output
    assert "(mask.ratio: the run has 0.5, this command line 0.3); choose another" in output
    assert table(tmp_path / "s") == before


def test_experiments_can_be_swept_over(sweep: Sweep, tmp_path: Path) -> None:
    code, output = ended(sweep("experiment=demo,null_arm", "trainer.max_steps=2", "data=digits"))
    assert code == 0, output
    (folder,) = (tmp_path / "runs" / "sweeps").iterdir()
    assert len(table(folder)) == 2


def test_a_loss_that_is_not_finite_is_a_failed_job(sweep: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    lr = "search.weight_optimizer.lr=0.025,1e30"
    code, _ = ended(sweep(*DEMO, lr, f"hydra.sweep.dir={folder}"))
    assert code == 1
    good, bad = table(folder)
    assert (good["status"], bad["status"], bad["loss"]) == ("finished", "failed", "")
    assert bad["reason"].startswith("the loss or its gradient became NaN or infinite at step")
    (failed,) = [run for run in find_runs(folder) if run.state == "failed"]
    assert failed.reason == bad["reason"]


def test_impossible_cells_are_rows_and_no_failure(sweep: Sweep, tmp_path: Path) -> None:
    grid = ["mask.ratio=0.2,0.8", "mask.patch_size=8,16", f"hydra.sweep.dir={tmp_path / 's'}"]
    code, output = ended(sweep(*DEMO, *grid, "hydra.launcher.parallel=2"))
    assert code == 0, output
    assert statuses(tmp_path / "s") == ["finished", "finished", "finished", "impossible"]
    assert "hides 4 of the 4 patches" in table(tmp_path / "s")[3]["reason"]


@pytest.mark.parametrize(
    ("executor", "number", "expected"),
    [("process", signal.SIGTERM, 75), ("local", signal.SIGINT, 130)],
)
def test_a_stopped_sweep_goes_on(
    sweep: Sweep,
    wait_for: WaitFor,
    tmp_path: Path,
    tiny: Sequence[str],
    executor: str,
    number: int,
    expected: int,
) -> None:
    folder = tmp_path / "s"
    command = [*tiny, "seed=3,4", "trainer.max_epochs=20", f"hydra.sweep.dir={folder}"]
    command.append(f"hydra.launcher.executor={executor}")
    process = sweep(*command)
    wait_for(process, folder / "seed=3" / "metrics.csv")
    os.killpg(process.pid, number)  # as a terminal does
    code, output = ended(process)
    assert code == expected, output
    assert "Traceback" not in output
    assert statuses(folder) == ["stopped", "waiting"]
    code, output = ended(sweep(*command))
    assert code == 0, output
    log = "".join(path.read_text() for path in (folder / "submitit").glob("*.out"))
    assert "continuing" in (log if executor == "local" else output)
    assert statuses(folder) == ["finished", "finished"]


def test_a_job_that_a_cluster_pre_empts_is_requeued_and_goes_on(
    sweep: Sweep,
    wait_for: WaitFor,
    tmp_path: Path,
    tiny: Sequence[str],
    finished: Callable[..., Path],
    assert_same: Callable[[Path, Path], None],
) -> None:
    long = ("trainer.max_epochs=20", "seed=3")
    folder = tmp_path / "s"
    process = sweep(
        *(*tiny, *long, "mask.ratio=0.5,0.6", f"hydra.sweep.dir={folder}"),
        *("hydra.launcher.executor=local", "hydra.launcher.parallel=2"),
    )
    wait_for(process, folder / "mask.ratio=0.5" / "metrics.csv")
    log = next(
        path for path in (folder / "submitit").glob("*.out") if "mask.ratio=0.5" in path.read_text()
    )
    controller = log.name.partition("_")[0]
    (task,) = subprocess.run(
        ["pgrep", "-P", controller], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(task), signal.SIGUSR2)  # what slurm sends before it takes the computer away
    code, output = ended(process)
    assert code == 0, output
    assert "Requeued job" in log.read_text()
    assert "continuing" in log.read_text()
    assert statuses(folder) == ["finished", "finished"]
    assert_same(folder / "mask.ratio=0.5", finished(*long, "mask.ratio=0.5"))
