import multiprocessing
import os
import pickle
import re
import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mae_nas.runs.checkpoint import FORMAT, AtomicCheckpointIO, check_fits, read_checkpoint


def write_much(path: Path, how: str, said: Path) -> None:
    """Until a limit on the size of files: a full disk, or a kill in the middle of the write."""
    if how == "kill":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        AtomicCheckpointIO().save_checkpoint({"big": torch.zeros(250_000)}, path)
    except OSError as error:
        said.write_text(f"{error}\n")


class Bomb:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def good(**extra: object) -> dict[str, object]:
    state = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(-1)}
    parts = {"state_dict": state, "optimizer_states": [], "loops": {}, "callbacks": {}}
    return {"format": FORMAT, "config_hash": "c", "data_hash": "d", **parts, **extra}


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(good(), path)
    AtomicCheckpointIO().save_checkpoint(good(global_step=7), path)
    found = read_checkpoint(path)
    assert found["global_step"] == 7
    assert torch.equal(found["state_dict"]["a.weight"], torch.arange(6.0).view(2, 3))
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("how", ["kill", "full"])
def test_a_write_that_fails_midway_leaves_the_old_checkpoint(tmp_path: Path, how: str) -> None:
    path, said = tmp_path / "there" / "last.ckpt", tmp_path / "said"
    AtomicCheckpointIO().save_checkpoint(good(), path)
    before = path.read_bytes()
    fork = multiprocessing.get_context("fork")
    writer = fork.Process(target=write_much, args=(path, how, said))
    writer.start()
    writer.join()
    assert path.read_bytes() == before
    assert read_checkpoint(path)["config_hash"] == "c"
    if how == "kill":
        assert writer.exitcode == -signal.SIGXFSZ
        return
    (line,) = said.read_text().splitlines()
    assert line.startswith(f"{path}: could not be written")
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("protocol", ["zip", "legacy", "bare pickle"])
def test_a_checkpoint_with_foreign_classes_is_refused_and_not_executed(
    tmp_path: Path, protocol: str
) -> None:
    path, trap = tmp_path / "last.ckpt", tmp_path / "executed"
    content = good(callbacks=Bomb(trap))
    if protocol == "bare pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=protocol == "zip")
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1
    assert not trap.exists()
    if protocol == "zip":
        assert "objects other than tensors and numbers" in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_a_truncated_checkpoint_is_refused_in_one_line(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path / "last.ckpt", good(more=torch.randn(500)))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"last\.ckpt: truncated or not a checkpoint") as caught:
        read_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"abc", b"hello world", b"\x80\x04K\x01.", b"<html>"])
@pytest.mark.filterwarnings("error")
def test_bytes_of_anything_else_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"last\.ckpt: (truncated or )?not a checkpoint|was not opened"
    ):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [{"state_dict": {}}, {"format": "other/1"}, torch.zeros(3), [1], good(format="mae_nas/9")],
)
def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path, content: object) -> None:
    path = saved(tmp_path / "last.ckpt", content)
    with pytest.raises(ValueError, match="not a checkpoint of mae-nas"):
        read_checkpoint(path)


def test_a_missing_checkpoint_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="truncated or not a checkpoint"):
        read_checkpoint(tmp_path)


def without(name: str) -> dict[str, Tensor]:
    state = good()["state_dict"]
    assert isinstance(state, dict)
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config_hash": "x"}, "a run with another configuration"),
        ({"data_hash": "x"}, "a run with another set of images"),
        ({"state_dict": without("b")}, "its tensors differ from this run's, first b"),
        ({"state_dict": {**without(""), "c": torch.zeros(1)}}, "first c"),
        ({"state_dict": {**without(""), "a.weight": torch.zeros(3, 2)}}, "first a.weight"),
    ],
)
def test_a_checkpoint_must_fit_the_search(change: dict[str, object], said: str) -> None:
    state, identity = without(""), {"config_hash": "c", "data_hash": "d"}
    check_fits(good(), state, identity, Path("x.ckpt"))
    with pytest.raises(ValueError, match=rf"^x\.ckpt: .*{said}"):
        check_fits(good(**change), state, identity, Path("x.ckpt"))
