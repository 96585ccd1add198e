"""A run that goes on is, bit for bit, the run that nothing interrupted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mae_nas.cli.main import main

Search = Callable[..., int]
Captured = pytest.CaptureFixture[str]
Summary = Callable[[Path], dict[str, Any]]
Snapshot = Callable[[Path], dict[str, bytes]]
Finished = Callable[..., Path]
LONG = ["trainer.max_epochs=9", "trainer.max_steps=12"]  # a reading at every second step


@pytest.mark.parametrize(
    ("stop", "options"),
    [
        (4, []),
        pytest.param(6, [], marks=pytest.mark.slow),
        (7, []),
        pytest.param(4, ["trainer.precision=64-true"], marks=pytest.mark.slow),
        pytest.param(4, ["trainer.precision=bf16-mixed"], marks=pytest.mark.slow),
        pytest.param(  # with another scale than it began with
            7, ["trainer.precision=16-mixed", "trainer.max_steps=9"], marks=pytest.mark.slow
        ),
        pytest.param(
            *(2, ["search.second_order=true", "trainer.accumulate=2", "trainer.max_steps=4"]),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_goes_on_from_any_kind_of_step(
    search: Search,
    finished: Finished,
    assert_same: Search,
    tmp_path: Path,
    stop: int,
    options: list[str],
    summary_of: Summary,
) -> None:
    """In mid-epoch, at an epoch's last batch (6) and at its first (7); by `trainer.max_steps`."""
    here = ["hydra.run.dir=run", *options]
    assert search(*here, f"trainer.max_steps={stop}") == 0
    assert summary_of(tmp_path / "run")["final"]["step"] == stop
    assert search(*here, "resume=auto") == 0
    assert_same(tmp_path / "run", finished(*options))


def test_a_run_keeps_the_precision_that_it_began_with(
    search: Search,
    tmp_path: Path,
    capsys: Captured,
    summary_of: Summary,
) -> None:
    here = ["hydra.run.dir=run", "trainer.max_steps=1"]
    assert search(*here) == 0
    assert "; precision 32-true" in capsys.readouterr().out
    assert summary_of(tmp_path / "run")["config"]["trainer"]["precision"] == "32-true"
    assert search(*here, "resume=auto", "trainer.precision=bf16-mixed") == 2
    line = 'trainer.precision: the run has "32-true", this command line "bf16-mixed"'
    assert line in capsys.readouterr().err
    assert search("resume=run", "trainer.max_steps=1") == 0


def test_a_stop_between_readings_leaves_no_trace(
    search: Search,
    finished: Finished,
    assert_same: Search,
    tmp_path: Path,
) -> None:
    here = [*LONG, "hydra.run.dir=run"]
    assert search(*here, "trainer.max_steps=5") == 0
    rows = (tmp_path / "run" / "genotypes.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4, 5]
    assert search(*here, "trainer.max_steps=9", "resume=auto") == 0
    assert search(*here, "resume=auto") == 0
    assert_same(tmp_path / "run", finished(*LONG))


@pytest.mark.slow
def test_a_run_goes_on_by_path_from_an_older_checkpoint(
    search: Search, finished: Finished, assert_same: Search, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert search("hydra.run.dir=run", "trainer.max_steps=5") == 0
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "five.ckpt")
    assert search("hydra.run.dir=run", "trainer.max_steps=9", "resume=auto") == 0
    capped = ["resume=run/checkpoints/five.ckpt", "trainer.max_steps=null"]
    assert main(["search", *capped]) == 0
    assert_same(run, finished())


def test_a_run_beyond_the_steps_asked_for_says_so(
    search: Search, tmp_path: Path, capsys: Captured
) -> None:
    run = tmp_path / "run"
    here = ["hydra.run.dir=run", "resume=auto"]
    assert search(*here, "trainer.max_steps=4") == 0
    for file in (run / "genotype.json", run / "genotypes.jsonl", run / "summary.json"):
        file.unlink()  # as if killed before its first reading
    capsys.readouterr()
    assert search(*here, "trainer.max_steps=2") == 2
    line = "mae-nas: trainer.max_steps: the run is at step 4 already; raise it\n"
    assert capsys.readouterr().err == line


def test_a_finished_run_is_not_run_twice(
    search: Search,
    finished: Finished,
    capsys: Captured,
    snapshot: Snapshot,
) -> None:
    run = finished()
    before = snapshot(run)
    assert search(f"hydra.run.dir={run}", "resume=auto") == 0
    assert "is finished: nothing to do" in capsys.readouterr().out
    assert main(["search", f"resume={run}"]) == 0
    assert {name for name in snapshot(run) if snapshot(run)[name] != before.get(name)} <= {
        "run.lock"
    }


def test_a_run_killed_before_its_record_gets_it_when_started_again(
    search: Search,
    finished: Finished,
    assert_same: Search,
    tmp_path: Path,
    summary_of: Summary,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished(), run)
    record = summary_of(run)
    (run / "summary.json").unlink()
    assert search("hydra.run.dir=run", "resume=auto") == 0
    assert_same(run, finished())
    assert summary_of(run).keys() == record.keys()


def test_resume_auto_finds_the_newest_unfinished_run(
    search: Search, finished: Finished, assert_same: Search, tmp_path: Path
) -> None:
    assert search("trainer.max_steps=3", "name=mine") == 0
    (run,) = (tmp_path / "runs" / "mine").iterdir()
    assert search("name=mine", "resume=auto") == 0
    assert [path.name for path in (tmp_path / "runs" / "mine").iterdir()] == [run.name]
    assert_same(run, finished())
