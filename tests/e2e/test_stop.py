"""What stops a search's process from outside: signals, a full disk, a reader that dies."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mae_nas.genotype import read_genotype
from mae_nas.spaces import S1

Search = Callable[..., int]
Summary = Callable[[Path], dict[str, Any]]
Finished = Callable[..., Path]
Start = Callable[..., subprocess.Popen[str]]
WaitFor = Callable[..., None]
LONG = ["trainer.max_epochs=9", "trainer.max_steps=24"]  # a reading at every second step


@pytest.mark.slow
def test_a_search_outlives_whoever_reads_its_lines(start: Start, tmp_path: Path) -> None:
    process = start("hydra.run.dir=run", "trainer.max_steps=3")
    assert process.stdout
    assert any("; precision " in line for line in process.stdout)  # the last one before training
    process.stdout.close()  # as a `tee` that dies
    assert process.wait(timeout=120) == 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert "step 3/3" in log
    assert "summary    run/summary.json" in log


@pytest.mark.slow
def test_a_full_disk_fails_in_one_line_and_leaves_nothing_half_written(
    start: Start, tmp_path: Path
) -> None:
    process = start("hydra.run.dir=run", most_kilobytes=40)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    run = tmp_path / "run"
    (line,) = [text for text in said.splitlines() if "could not be written" in text]
    assert "last.ckpt" in line
    assert list(run.rglob("*.tmp-*")) == []
    assert not (run / "checkpoints" / "last.ckpt").exists()
    S1().check(read_genotype(str(run)))


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGINT],
        pytest.param([signal.SIGINT, signal.SIGTERM], marks=pytest.mark.slow),
    ],
    ids=["once", "twice"],
)
def test_signals_end_a_run_cleanly_and_it_goes_on_bit_identically(
    search: Search,
    start: Start,
    wait_for: WaitFor,
    finished: Finished,
    assert_same: Search,
    tmp_path: Path,
    signals: list[signal.Signals],
) -> None:
    run, here = tmp_path / "run", [*LONG, "hydra.run.dir=run", "resume=auto"]
    here += ["efficiency.resident=false", "efficiency.workers=2"]
    steps = [0]
    for number in signals:
        process = start(*here)
        wait_for(process, run / "metrics.csv", steps[-1] + 4)
        os.killpg(process.pid, number)  # as Ctrl-C and schedulers do: loader workers get it too
        said, _ = process.communicate(timeout=60)
        assert process.returncode == (130 if number == signal.SIGINT else 75), said
        assert "Traceback" not in said
        assert f"resume=auto hydra.run.dir={Path('run')}" in said
        S1().check(read_genotype(str(run)))
        summary = json.loads((run / "summary.json").read_text())
        assert summary["state"] == "stopped"
        steps.append(summary["final"]["step"])
        assert steps[-2] + 3 <= steps[-1] < 24
    assert search(*here) == 0
    assert json.loads((run / "summary.json").read_text())["state"] == "finished"
    assert_same(run, finished(*LONG))
