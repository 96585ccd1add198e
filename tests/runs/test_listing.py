import json
import os
import time
from pathlib import Path

import pytest

from mae_nas.runs.folder import RunFolder
from mae_nas.runs.listing import columns, find_runs, look

READING = {"step": 6, "verdict": "ok", "held_out_loss": 0.5, "skips": {"normal": 2, "reduce": 0}}


def make_run(path: Path, summary: dict[str, object] | None = None) -> RunFolder:
    folder = RunFolder(path)
    path.mkdir(parents=True)
    folder.write_config({}, [])
    folder.genotype.write_text(json.dumps(READING))
    if summary is not None:
        folder.summary.write_text(json.dumps(summary))
    return folder


def test_a_run_is_what_its_record_says(tmp_path: Path) -> None:
    chance = {"normal": {"mean": 1.25}}
    make_run(tmp_path / "a", {"state": "finished", "wall_seconds": 9.5, "skip_chance": chance})
    run = look(tmp_path / "a")
    assert (run.state, run.step, run.verdict, run.loss) == ("finished", 6, "ok", 0.5)
    assert (run.skips_normal, run.chance_normal, run.seconds) == (2, 1.25, 9.5)


def test_a_run_without_a_record_was_stopped(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    assert look(tmp_path / "a").state == "stopped"


def test_a_run_without_a_record_has_the_chance_of_its_last_reading(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    folder.genotype.write_text(json.dumps({**READING, "chance_normal": 1.25}))
    assert (look(tmp_path / "a").skips_normal, look(tmp_path / "a").chance_normal) == (2, 1.25)


def test_a_run_that_a_process_holds_is_running_whatever_its_record_says(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", {"state": "stopped"})
    folder.lock()
    try:
        assert look(tmp_path / "a").state == "running"
        assert (tmp_path / "a" / "run.lock").read_text().startswith(f"pid {os.getpid()} ")
    finally:
        folder.release()
    assert look(tmp_path / "a").state == "stopped"


@pytest.mark.parametrize("text", ["{", '{"state": 3}', "[]"])
def test_what_cannot_be_read_hides_no_other_run(tmp_path: Path, text: str) -> None:
    make_run(tmp_path / "a", {"state": "finished"})
    make_run(tmp_path / "b").summary.write_text(text)
    states = {run.folder.name: run.state for run in find_runs(tmp_path)}
    assert states == {"a": "finished", "b": "unreadable" if text == "{" else "stopped"}


def test_another_programs_configuration_is_no_run(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"hidden_size": 768}')
    assert [run.folder.name for run in find_runs(tmp_path)] == ["a"]


def test_the_last_run_to_change_comes_last(tmp_path: Path) -> None:
    for name, age in (("new", 10), ("sweep/old", 1000), ("mid", 100)):
        make_run(tmp_path / name)
        for file in (tmp_path / name).iterdir():
            os.utime(file, (time.time() - age,) * 2)
    found = find_runs(tmp_path)
    assert [run.folder.name for run in found] == ["old", "mid", "new"]
    assert found[0].age == pytest.approx(1000, abs=60)


def test_columns_stand_below_their_names() -> None:
    text = columns([{"run": "a", "loss": 0.5, "age": 62.5}, {"run": "b", "loss": None, "age": 1}])
    assert text.splitlines() == ["run  loss    age", "a    0.5000  0:01:02", "b    –       1"]


def test_a_strangers_text_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    make_run(tmp_path / "a\nb", {"state": "failed", "reason": "\x1b[2J\nforged  finished é"})
    (run,) = find_runs(tmp_path)
    text = columns([{"run": run.folder.name, "reason": run.reason}])
    assert text.splitlines()[1:] == [r"a\nb  \x1b[2J\nforged  finished é"]
