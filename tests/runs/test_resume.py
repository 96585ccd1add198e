import copy
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mae_nas.runs.folder import RunFolder
from mae_nas.runs.resume import Decision, config_hash, decide, differences, follow

CONFIG: dict[str, Any] = {
    "name": "try",
    "seed": 0,
    "resume": None,
    "mask": {"ratio": 0.5, "patch_size": 8},
    "decoder": {"taps": [1, 2, 3]},
    "data": {"root": "/images", "cache": None, "side": 32},
    "trainer": {"max_steps": None, "checkpoint_seconds": 60, "log_every": 10},
    "logger": {"mode": "offline"},
    "efficiency": {"workers": "auto"},
}


def config(resume: str | None = None, **sections: object) -> dict[str, Any]:
    """A copy of CONFIG in which `a__b=v` sets ["a"]["b"]."""
    made: dict[str, Any] = {**copy.deepcopy(CONFIG), "resume": resume}
    for key, value in sections.items():
        section, _, name = key.rpartition("__")
        (made[section] if section else made)[name] = value
    return made


def run(path: Path, checkpoint: bool = True, state: str | None = None, **sections: object) -> Path:
    """A run as an earlier process would have left it."""
    folder = RunFolder.new(path, exact=True)
    folder.write_config(config(**sections), [])  # type: ignore[arg-type]
    if checkpoint:
        folder.checkpoint.parent.mkdir()
        with zipfile.ZipFile(folder.checkpoint, "w") as file:
            file.writestr("data", "x")
    if state:
        folder.summary.write_text(json.dumps({"state": state}))
    folder.release()
    return path


def given(path: Path, resume: str | None, **sections: object) -> Decision:
    """The decision when the user names the folder."""
    return decide(config(resume, **sections), path, run_dir_given=True, touched=["resume"])


def dated(parent: Path, resume: str | None, **sections: object) -> Decision:
    """The decision when the folder is the default, dated one."""
    return decide(config(resume, **sections), parent / "now", run_dir_given=False)


def age(path: Path, seconds: int) -> None:
    os.utime(path / "config.json", (seconds, seconds))


def test_null_starts_in_a_missing_or_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.lock").touch()  # left by a process killed before it wrote anything
    (tmp_path / "empty" / "config.json.tmp-1").touch()
    for name in ("missing", "empty"):
        decision = given(tmp_path / name, None)
        assert not decision.continued
        folder = decision.open(["seed=0"])
        assert json.loads(folder.config.read_text())["overrides"] == ["seed=0"]
        assert sorted(p.name for p in folder.path.iterdir()) == ["config.json", "run.lock"]
        folder.release()


def test_null_refuses_a_run_and_anything_else(tmp_path: Path) -> None:
    run(tmp_path / "run")
    (tmp_path / "only" / "checkpoints").mkdir(parents=True)
    for name in ("run", "only"):
        with pytest.raises(ValueError, match="already holds a run; continue it with resume=auto"):
            given(tmp_path / name, None)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    for resume in (None, "auto"):
        with pytest.raises(ValueError, match=r"is not empty \(a\.jpg, …\) and not a run"):
            given(tmp_path / "photos", resume)
        with pytest.raises(ValueError, match="is a file"):
            given(tmp_path / "photos" / "a.jpg", resume)


def test_auto_with_a_folder_continues_starts_or_says_finished(tmp_path: Path) -> None:
    path = run(tmp_path / "run")
    decision = given(path, "auto")
    assert decision.continued
    assert decision.checkpoint == path / "checkpoints" / "last.ckpt"
    assert not decision.read_back
    assert not RunFolder(path).try_lock()
    decision.folder.release()
    early = given(run(tmp_path / "early", checkpoint=False), "auto")
    assert (early.continued, early.checkpoint) == (True, None)
    early.folder.release()
    assert not given(tmp_path / "new", "auto").continued
    done = given(run(tmp_path / "done", state="finished"), "auto")
    assert done.ended == "finished"
    assert "finished: nothing to do" in done.message
    collapsed = given(run(tmp_path / "collapsed", state="collapsed"), "auto")
    assert collapsed.ended == "collapsed"
    assert "collapsed: nothing to do" in collapsed.message
    stopped = given(run(tmp_path / "stopped", state="stopped"), "auto")
    assert not stopped.ended
    stopped.folder.release()


def test_a_run_ended_by_max_steps_goes_on_at_a_higher_limit(tmp_path: Path) -> None:
    path = run(tmp_path / "run", state="finished", trainer__max_steps=5)
    for limit in (4, 5):
        assert given(path, "auto", trainer__max_steps=limit).ended
    for limit in (6, None):
        longer = given(path, "auto", trainer__max_steps=limit)
        assert not longer.ended
        longer.folder.release()
    # Continued to 9 steps since: the summary knows, so the stored limit of 5 means nothing more.
    summary = {"state": "finished", "config": {"trainer": {"max_steps": 9}}}
    (path / "summary.json").write_text(json.dumps(summary))
    assert decide(config(str(path)), path, True, ["resume"]).ended


def test_auto_refuses_a_run_in_use(tmp_path: Path) -> None:
    path = run(tmp_path / "run")
    holder = RunFolder(path)
    holder.lock()
    with pytest.raises(ValueError, match=f"is in use by pid {os.getpid()}"):
        given(path, "auto")
    holder.release()


def test_a_changed_configuration_is_refused_key_by_key(tmp_path: Path) -> None:
    path = run(tmp_path / "run")
    with pytest.raises(ValueError, match="cannot continue") as error:
        given(path, "auto", mask__ratio=0.6, seed=1, trainer__log_every=5, decoder__taps=[1])
    assert str(error.value).splitlines()[1:] == [
        "decoder.taps: the run has [1, 2, 3], this command line [1]",
        "mask.ratio: the run has 0.5, this command line 0.6",
        "seed: the run has 0, this command line 1",
        "trainer.log_every: the run has 10, this command line 5",
    ]


def test_what_changes_no_result_may_change(tmp_path: Path) -> None:
    decision = given(
        run(tmp_path / "run"),
        "auto",
        trainer__max_steps=3,
        trainer__checkpoint_seconds=5,
        logger={"project": "x"},
        efficiency__workers=2,
        data__root="/moved",
        data__cache="/fast",
    )
    assert decision.continued
    decision.folder.release()


def test_an_open_precision_is_the_one_that_the_run_began_with(tmp_path: Path) -> None:
    run(tmp_path / "run", trainer__precision="32-true")
    for ask, place in ((given, tmp_path / "run"), (dated, tmp_path)):
        decision = ask(place, "auto", trainer__precision="auto")
        assert decision.checkpoint
        assert decision.config["trainer"]["precision"] == "32-true"  # type: ignore[index]
        decision.folder.release()
    with pytest.raises(ValueError, match='the run has "32-true", this command line "bf16-mixed"'):
        given(tmp_path / "run", "auto", trainer__precision="bf16-mixed")


def test_another_node_follows_what_the_first_one_stored(tmp_path: Path) -> None:
    stored = run(tmp_path / "run", trainer__precision="bf16-mixed")
    RunFolder(stored).lock()  # as the first node does
    decision = follow(config("auto", trainer__precision="auto"), stored)
    assert decision.config["trainer"]["precision"] == "bf16-mixed"  # type: ignore[index]
    assert decision.checkpoint == RunFolder(stored).checkpoint
    assert follow(config("auto"), tmp_path / "new").checkpoint is None


def test_a_synchronised_search_may_change_its_devices(tmp_path: Path) -> None:
    path = run(tmp_path / "run", trainer__sync_batchnorm=True, trainer__devices=1)
    # By PATH the stored configuration says that it is synchronised, not the command line.
    moved = config(str(path), trainer__devices=2)
    decision = decide(moved, tmp_path / "now", False, ["resume", "trainer.devices"])
    assert decision.config["trainer"]["devices"] == 2  # type: ignore[index]
    assert decision.config["trainer"]["sync_batchnorm"] is True  # type: ignore[index]
    decision.folder.release()
    path = run(tmp_path / "other", trainer__sync_batchnorm=False, trainer__devices=1)
    with pytest.raises(ValueError, match=r"trainer\.devices: the run has 1, this command line 2"):
        decide(config(str(path), trainer__devices=2), path, False, ["resume", "trainer.devices"])


def test_auto_without_a_folder_takes_the_newest_like_it(tmp_path: Path) -> None:
    names = ["old", "newer", "other", "finished", "held", "broken"]
    paths = {name: tmp_path / name for name in names}
    for name in ("old", "newer", "held"):
        run(paths[name])
    run(paths["other"], seed=1)
    run(paths["finished"], state="finished")
    run(paths["broken"]).joinpath("config.json").write_text("{")
    for seconds, name in enumerate(names, start=1_000):
        age(paths[name], seconds)
    holder = RunFolder(paths["held"])
    holder.lock()
    decision = dated(tmp_path, "auto")
    assert decision.folder.path == paths["newer"]
    second = dated(tmp_path, "auto")  # the first decision holds `newer`
    assert second.folder.path == paths["old"]
    third = dated(tmp_path, "auto")
    assert not third.continued
    assert third.folder.path == tmp_path / "now"
    for one in (holder, decision.folder, second.folder):
        one.release()


def test_path_takes_the_stored_configuration_but_not_where_it_reports(tmp_path: Path) -> None:
    path = run(
        tmp_path / "run", mask__ratio=0.75, logger={"mode": "online"}, efficiency={"workers": 64}
    )
    for target in (path, path / "checkpoints" / "last.ckpt"):
        decision = decide(config(str(target)), tmp_path / "now", False, ["resume"])
        assert decision.read_back
        # The number of threads, which efficiency holds, may round a sum: the run keeps its own.
        expected = config(str(target), mask__ratio=0.75, efficiency={"workers": 64})
        assert decision.config == expected
        assert decision.checkpoint == path / "checkpoints" / "last.ckpt"
        decision.folder.release()


def test_path_compares_what_the_command_line_sets(tmp_path: Path) -> None:
    path = run(tmp_path / "run", mask__ratio=0.75)
    same = config(str(path), mask__ratio=0.75, trainer__max_steps=7, logger={"mode": "online"})
    decision = decide(same, path, False, ["resume", "mask.ratio", "trainer.max_steps", "logger"])
    assert decision.config == same
    decision.folder.release()
    moved = config(str(path), data__root="/moved")
    decision = decide(moved, path, False, ["resume", "data.root"])
    assert decision.config == config(str(path), mask__ratio=0.75, data__root="/moved")
    decision.folder.release()
    for touched in ("mask.ratio", "mask", ""):
        with pytest.raises(ValueError, match=r"mask\.ratio: the run has 0\.75, this command line"):
            decide(config(str(path)), path, False, ["resume", touched])
    other = config(str(path), decoder__taps=[1, 9, 3], mask__ratio=0.75)
    with pytest.raises(ValueError, match=r"decoder\.taps: the run has"):
        decide(other, path, False, ["resume", "decoder.taps.1"])


def test_path_refuses_what_is_not_a_run(tmp_path: Path) -> None:
    path = run(tmp_path / "run")
    foreign = tmp_path / "foreign.ckpt"
    foreign.write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    cases = {
        str(tmp_path / "no"): "does not exist; name a run folder or a checkpoint",
        str(foreign): "is not a checkpoint in a run folder",
        str(tmp_path / "empty"): r"is not a run folder \(it has no config\.json\)",
    }
    for resume, text in cases.items():
        with pytest.raises(ValueError, match=text):
            decide(config(resume), tmp_path / "now", False, ["resume"])
    with pytest.raises(ValueError, match=r"hydra\.run\.dir: a run continues where it is"):
        decide(config(str(path)), tmp_path / "elsewhere", True, ["resume"])
    (path / "checkpoints" / "last.ckpt").write_bytes(b"PK cut short")
    with pytest.raises(ValueError, match="is not a checkpoint, or was cut short"):
        decide(config(str(path)), path, True, ["resume"])


def test_config_hash_sees_what_binds_and_nothing_else() -> None:
    assert config_hash(config()) == config_hash(dict(reversed(config().items())))
    assert config_hash(config()) == config_hash(config("auto", trainer__max_steps=3, logger={}))
    assert config_hash(config()) == config_hash(config(data__root="/x", data__cache="/y"))
    hashes = {config_hash(made) for made in (config(), config(seed=1), config(data__side=8))}
    assert len(hashes) == 3
    assert all(len(one) == 32 for one in hashes)


def test_differences_name_missing_keys() -> None:
    assert differences({"a": {"b": 1}}, {"a": {}, "c": None}) == [
        "a: the run has nothing, this command line {}",
        "a.b: the run has 1, this command line nothing",
        "c: the run has nothing, this command line null",
    ]
