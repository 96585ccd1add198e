import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mae_nas.runs.files import append_line, read_json, remove_unfinished, write_json
from mae_nas.runs.folder import RunFolder

HOLDER = """
import sys, time
from pathlib import Path
from mae_nas.runs.folder import RunFolder
RunFolder(Path(sys.argv[1])).lock()
print("held", flush=True)
time.sleep(60)
"""


def test_write_json_replaces_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": [1, 2.5, None], "c": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": [1, 2.5, None], "c": "é"}
    with pytest.raises(TypeError):
        write_json(path, {"b": object()})
    assert read_json(path) == {"b": [1, 2.5, None], "c": "é"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_write_json_leaves_the_old_file_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, 2)
    assert read_json(path) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_read_json_says_what_is_damaged(tmp_path: Path) -> None:
    for content in (b'{"a": ', b"\xff\xfe\x00", b"[" * 100_000):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.json: not a JSON file"):
            read_json(tmp_path / "a.json")


def test_append_line_drops_a_line_that_a_kill_cut(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, "one")
    append_line(path, "two")
    with path.open("a") as file:
        file.write("thr")
    append_line(path, "four")
    assert path.read_text() == "one\ntwo\nfour\n"


def test_removes_half_written_files_only(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    stale = [tmp_path / "a.json.tmp-12", tmp_path / "checkpoints" / "last.ckpt.tmp-3"]
    for path in [*stale, tmp_path / "a.json"]:
        path.touch()
    remove_unfinished(tmp_path)
    assert not any(path.exists() for path in stale)
    assert (tmp_path / "a.json").exists()


def test_new_takes_a_free_name_unless_the_name_was_chosen(tmp_path: Path) -> None:
    first = RunFolder.new(tmp_path / "a" / "x", exact=False)
    second = RunFolder.new(tmp_path / "a" / "x", exact=False)
    assert (first.path.name, second.path.name) == ("x", "x-2")
    first.release()
    first.write_config({"seed": 1}, ["seed=1"])
    with pytest.raises(ValueError, match="already holds a run; continue it with resume=auto"):
        RunFolder.new(tmp_path / "a" / "x", exact=True)
    second.release()


def test_config_survives_the_round_trip(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config({"seed": 1, "a": {"b": [1.5]}}, ["seed=1"])
    assert folder.read_config() == {"seed": 1, "a": {"b": [1.5]}}
    for foreign in ('{"model": 1}', '{"format": "mae_nas.config/1", "config": 3}', "[]"):
        folder.config.write_text(foreign)
        with pytest.raises(ValueError, match="is not a configuration of mae-nas"):
            folder.read_config()


def test_lock_is_exclusive_and_gone_at_sigkill(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        folder = RunFolder(tmp_path)
        with pytest.raises(ValueError, match=f"is in use by pid {holder.pid} on "):
            folder.lock()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        folder.lock()
        folder.lock()  # a second time is no mistake
        folder.release()


def _wait(seconds: float) -> None:
    time.sleep(seconds)


def test_lock_is_not_kept_by_a_forked_worker(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.lock()
    worker = multiprocessing.get_context("fork").Process(target=_wait, args=(30.0,))
    worker.start()
    time.sleep(0.2)
    folder.release()
    successor = RunFolder(tmp_path)
    try:
        assert successor.try_lock()
    finally:
        successor.release()
        worker.kill()
        worker.join()


def _look_on(path: Path) -> None:
    while True:
        RunFolder(path).is_held()


def test_no_run_is_refused_for_those_who_look(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    poller = multiprocessing.get_context("fork").Process(target=_look_on, args=(tmp_path,))
    poller.start()
    try:
        for _ in range(500):
            folder.lock()
            folder.release()
    finally:
        poller.kill()
        poller.join()


def test_discard_takes_back_only_what_was_made_for_nothing(tmp_path: Path) -> None:
    folder = RunFolder.new(tmp_path / "runs" / "x", exact=True)
    folder.write_config({}, [])
    folder.log.write_text("hello\n")
    folder.wandb.write_text("{}")
    folder.summary.write_text('{"state": "failed"}')
    (folder.path / "tensorboard").mkdir()
    (folder.path / "tensorboard" / "events").touch()
    assert folder.discard()
    assert list(tmp_path.iterdir()) == []

    folder = RunFolder.new(tmp_path / "runs" / "x", exact=True)
    folder.genotype.write_text("{}")
    assert not folder.discard()
    assert folder.genotype.exists()
    folder.release()

    old = RunFolder(folder.path)
    old.genotype.unlink()
    assert not old.discard()

    (tmp_path / "mine").mkdir()
    assert RunFolder.new(tmp_path / "mine", exact=True).discard()
    assert (tmp_path / "mine").is_dir()
