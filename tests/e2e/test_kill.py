"""Killed at any instant and started again, a run ends bit-identical to one that was not."""

import json
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mae_nas.genotype import read_genotype

LONG = ["trainer.max_epochs=9"]  # 54 steps, a reading at every second one
SHORTER = [*LONG, "trainer.max_steps=24"]
OFTEN = "trainer.checkpoint_seconds=0.02"
WAYS = [
    ["efficiency.resident=true"],
    ["efficiency.resident=false", "efficiency.workers=2"],
    ["efficiency.resident=false", "efficiency.workers=0"],
]
Search = Callable[..., int]
Start = Callable[..., subprocess.Popen[str]]


def steps_written(run: Path) -> int:
    metrics = run / "metrics.csv"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def kill_within(process: subprocess.Popen[str], run: Path, more: int, pause: float) -> None:
    """SIGKILL once `more` further steps are on disk, and a moment later: anywhere in a step."""
    target = steps_written(run) + more
    deadline = time.monotonic() + 120
    while steps_written(run) < target and process.poll() is None:
        assert time.monotonic() < deadline, "no progress within two minutes"
        time.sleep(0.002)
    time.sleep(pause)
    process.kill()
    process.communicate()


def read_lines_are_whole(run: Path) -> None:
    """All but perhaps the last line, which a kill may cut, can be read."""
    genotypes = run / "genotypes.jsonl"
    if genotypes.exists():
        for line in genotypes.read_text().split("\n")[:-1]:
            json.loads(line)
    if (run / "genotype.json").exists():
        read_genotype(str(run))


@pytest.mark.parametrize(
    ("kills", "length"),
    [
        (1, SHORTER),
        pytest.param(2, SHORTER, marks=pytest.mark.slow),
        pytest.param(10, LONG, marks=pytest.mark.slow),
        pytest.param(2, [*SHORTER, "trainer.precision=16-mixed"], marks=pytest.mark.slow),
    ],
)
def test_killed_runs_end_as_if_nothing_had_happened(
    search: Search,
    start: Start,
    finished: Callable[..., Path],
    assert_same: Search,
    tmp_path: Path,
    kills: int,
    length: list[str],
) -> None:
    run, moments = tmp_path / "run", random.Random(kills)
    here = [*length, OFTEN, "hydra.run.dir=run", "resume=auto"]
    for kill in range(kills):
        process = start(*here, *WAYS[kill % len(WAYS)])
        kill_within(process, run, moments.randrange(1, 3 + 10 // kills), moments.uniform(0, 0.15))
        read_lines_are_whole(run)
    assert search(*here, *WAYS[kills % len(WAYS)]) == 0
    assert list(run.rglob("*.tmp-*")) == []
    assert_same(run, finished(*length))


@pytest.mark.slow
def test_loader_workers_change_no_bit(
    search: Search, finished: Callable[..., Path], assert_same: Search, tmp_path: Path
) -> None:
    for number, way in enumerate(WAYS[1:]):
        assert search(f"hydra.run.dir=run{number}", *way) == 0
        assert_same(tmp_path / f"run{number}", finished())


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_begins_again(
    search: Search,
    start: Start,
    wait_for: Callable[..., None],
    finished: Callable[..., Path],
    assert_same: Search,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    process = start("hydra.run.dir=run")
    wait_for(process, run / "train.log")
    process.kill()
    process.communicate()
    assert search("hydra.run.dir=run", "resume=auto") == 0
    assert_same(run, finished())
