import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mae_nas.cli import preflight
from mae_nas.cli.check import check
from mae_nas.cli.compose import compose
from mae_nas.cli.main import main
from mae_nas.data import Folder
from mae_nas.runs.measure import StepCost
from mae_nas.runs.pictures import Pictures

SMALL = ["supernet.width=4", "supernet.depth=3", "space=s1", "trainer.accelerator=cpu"]
COST = StepCost(
    images=8, seconds=2.0, peak_bytes=180, fixed_bytes=100, reserved_bytes=180, device_bytes=240
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # `main` adds the current folder


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the steps, which tests of the measuring are about."""
    monkeypatch.setattr(preflight, "measure_step", lambda *_: COST)


@pytest.fixture
def look(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    def _look(folder: Path, *overrides: str) -> dict:
        assert main(["inspect", str(folder), "format=json", *SMALL, *overrides]) == 0
        return json.loads(capsys.readouterr().out)

    return _look


def save(path: Path, array: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def noise(seed: int, *shape: int, high: int = 256, dtype: type = np.uint8) -> NDArray[np.generic]:
    return np.random.default_rng(seed).integers(0, high, shape, dtype)


def mixed_folder(root: Path) -> None:
    """Two class folders: 8 and 16 bits, grey, RGB, RGBA; a copy, broken files, another file."""
    for i in range(8):
        save(root / "cat, big" / f"{i}.png", noise(i, 20 + 10 * i, 40, 3))
        save(root / "dog's" / f"{i}.png", noise(20 + i, 33, 66))
    save(root / "dog's" / "deep.png", noise(40, 30, 30, high=65536, dtype=np.uint16))
    save(root / "dog's" / "clear.png", noise(41, 32, 32, 4))
    (root / "cat, big" / "copy.png").write_bytes((root / "cat, big" / "3.png").read_bytes())
    (root / "cat, big" / "half.png").write_bytes((root / "cat, big" / "2.png").read_bytes()[:300])
    (root / "dog's" / "empty.jpg").touch()
    (root / "notes.txt").touch()
    (root / "again").symlink_to(root / "dog's")


def video(root: Path, name: Callable[[int, int], str]) -> None:
    """Six scenes of eight frames; the window moves by a pixel a frame."""
    for scene in range(6):
        rough = noise(100 + scene, 6, 6, 3).astype(np.uint8)
        whole = Image.fromarray(rough).resize((80, 80), Image.Resampling.BICUBIC)
        for frame in range(8):
            window = whole.crop((frame, 0, frame + 64, 64))
            save(root / name(scene, frame), np.asarray(window))


@pytest.mark.usefixtures("unmeasured")
def test_what_is_there_is_counted_and_named(
    tmp_path: Path, look: Callable[..., dict], capsys: pytest.CaptureFixture[str]
) -> None:
    mixed_folder(tmp_path / "images")
    facts = look(tmp_path / "images")
    assert facts["images"] == 19
    assert facts["formats"] == {"PNG": 19}
    assert facts["modes"] == {"RGB": 9, "L": 8, "I;16": 1, "RGBA": 1}
    assert facts["depths"] == {"8 bits": 18, "16 bits": 1}
    assert facts["channels"] == {"3": 10, "1": 9}
    assert facts["short_sides"] == {"least": 20, "median": 33, "most": 40}
    assert facts["histogram"] == {"16-31": 3, "32-63": 16}
    assert facts["aspects"] == {"least": 0.444, "median": 1.333, "most": 2.0}
    assert facts["other_files"] == {".txt": 1}
    assert facts["links"] == 1
    broken = {entry["file"]: entry["reason"] for entry in facts["broken"]}
    assert broken.keys() == {"cat, big/half.png", "dog's/empty.jpg"}
    assert broken["dog's/empty.jpg"] == "empty file"
    assert facts["exact_duplicates"] == [["cat, big/3.png", "cat, big/copy.png"]]
    assert facts["near_duplicates"]["pairs"] == 0
    assert facts["folders"] == {"cat, big": 9, "dog's": 10}
    assert facts["folders_are"] == "classes"
    used = facts["search"]
    assert (used["side"], used["channels"], used["dtype"]) == (32, 3, "int16")
    assert (used["stem"], used["patch_size"]) == ("cifar", 8)
    assert (used["weights"], used["batch_size"], used["groups"]) == (9, 8, 18)

    assert main(["inspect", str(tmp_path / "images"), *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == facts["command"]
    rows = {line[:19].strip(): line[19:] for line in lines if line.startswith("  ")}
    assert rows["modes"] == "9 × RGB, 8 × L, 1 × RGBA, 1 × I;16"
    assert rows["folders"] == "2, like classes: 9 × cat, big, 10 × dog's"
    assert rows["not readable"] == "2"
    assert rows["side"] == "32 pixels, 3 channels, int16"
    assert any("cat, big/3.png = cat, big/copy.png" in line for line in lines)


@pytest.mark.usefixtures("unmeasured")
def test_a_search_of_days_is_pointed_out(tmp_path: Path, look: Callable[..., dict]) -> None:
    mixed_folder(tmp_path / "images")
    assert look(tmp_path / "images")["notes"] == []
    (note,) = look(tmp_path / "images", "trainer.max_epochs=50000")["notes"]
    steps, minutes = re.findall(r"trainer.max_steps=(\d+) gives a first look in 0:(\d\d):", note)[0]
    assert int(steps) >= 20
    assert int(minutes) <= 15 or steps == "20"


@pytest.mark.usefixtures("unmeasured")
def test_a_name_cannot_break_a_line_of_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed_folder(tmp_path / "images")
    (tmp_path / "images" / "two\nlines.png").touch()
    assert main(["inspect", str(tmp_path / "images"), *SMALL]) == 0
    assert "two\\nlines.png: empty file" in capsys.readouterr().out


def test_the_command_works_when_pasted(
    tmp_path: Path, look: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pictures, "draw", lambda *_: None)
    root = tmp_path / 'it\'s "a", (größe)=1 $HOME ${x}\\'
    mixed_folder(root)
    pasted = f"set -- {look(root)['command']}; printf '%s\\0' \"$@\""
    said = subprocess.run(["bash", "-c", pasted], capture_output=True, check=True).stdout
    name, *arguments = os.fsdecode(said).split("\0")[:-1]
    assert name == "mae-nas"
    run = tmp_path / "run"
    assert main([*arguments, "trainer.max_steps=2", f"hydra.run.dir={run}"]) == 0
    config = json.loads((run / "summary.json").read_text())["config"]
    assert config["data"]["root"] == str(root)
    assert config["data"]["batch_size"] == 8


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("name", "groups"),
    [
        (lambda scene, frame: f"clip{scene}_{frame:03d}.png", 6),
        (lambda scene, frame: f"{scene % 3}/clip{scene}_{frame}.jp2", 6),
        (lambda scene, frame: f"p{scene}_{frame}_view{frame % 2}.png", 6),
    ],
)
def test_frames_of_a_video_stay_together(
    tmp_path: Path, look: Callable[..., dict], name: Callable[[int, int], str], groups: int
) -> None:
    video(tmp_path / "images", name)
    facts = look(tmp_path / "images", "data.batch_size=4")
    assert facts["near_duplicates"]["images"] > 40
    assert facts["near_duplicates"]["divided"] == 0
    assert facts["search"]["groups"] == groups
    assert "data.group=" in facts["command"]
    assert facts["notes"] == []


@pytest.mark.usefixtures("unmeasured")
def test_frames_whose_names_say_nothing_are_pointed_out(
    tmp_path: Path, look: Callable[..., dict]
) -> None:
    video(tmp_path / "images", lambda scene, frame: f"{8 * scene + frame:03d}.png")
    facts = look(tmp_path / "images", "data.batch_size=4")
    assert "data.group=" not in facts["command"]
    (note,) = facts["notes"]
    assert note.startswith("with data.group=none, ")


@pytest.mark.usefixtures("unmeasured")
def test_a_batch_that_memory_cannot_hold_is_cut(tmp_path: Path, look: Callable[..., dict]) -> None:
    video(tmp_path, lambda scene, frame: f"{'train' if scene else 'test'}/{scene}_{frame}.png")
    # 100 bytes, and 10 an image: 16 images need 260 where 80 % of 240 are to be had.
    facts = look(tmp_path, "data.batch_size=16")
    assert facts["command"].endswith(" trainer.accumulate=2")
    assert facts["estimate"]["images"] == 8
    (note,) = facts["notes"]
    assert note.startswith("test: to leave out")


@pytest.mark.usefixtures("unmeasured")
def test_a_batch_that_is_proposed_can_be_shared_by_the_devices(
    tmp_path: Path, look: Callable[..., dict]
) -> None:
    for i in range(30):
        save(tmp_path / "images" / f"{i}.png", noise(i, 32, 32, 3))
    command = look(tmp_path / "images", "trainer.devices=3", "data.batch_size=60")["command"]
    assert command.endswith(" data.batch_size=12")  # a half has 13 or 14
    check(compose(shlex.split(command)[2:]).config)


@pytest.mark.usefixtures("unmeasured")
def test_nothing_is_proposed_that_a_search_would_refuse(
    tmp_path: Path, look: Callable[..., dict], capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(4):  # halves of two and one
        save(tmp_path / f"{i}.png", noise(i, 32, 32, 3))
    with pytest.raises(AssertionError):
        look(tmp_path, "objective.target=permuted", "data.batch_size=4")
    assert "data.batch_size of 2 or more" in capsys.readouterr().err


@pytest.mark.usefixtures("unmeasured")
def test_images_that_are_kept_nowhere_are_read_once(
    tmp_path: Path, look: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed_folder(tmp_path / "images")
    read, load = [], Folder.load
    monkeypatch.setattr(Folder, "load", lambda *a: read.append(1) or load(*a))
    look(tmp_path / "images", "data.cache=null")
    assert len(read) == 1


@pytest.mark.usefixtures("unmeasured")
def test_more_than_a_few_names_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed_folder(tmp_path / "images")
    for i in range(7):
        (tmp_path / "images" / f"{i}.png").touch()
    whole = sorted((tmp_path / "images").rglob("*.png"))[-1]
    for i in range(8):
        shutil.copy(whole, whole.with_name(f"x{i}.png"))
    assert main(["inspect", str(tmp_path / "images"), *SMALL]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert any(line.count(" = ") == 5 and line.endswith(" = 4 more") for line in lines)
    assert lines[lines.index(f"{'not readable':<17}9") + 6] == "and 4 more (format=json names all)"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["file"], "file is not a folder"),
        (["empty"], "data.root: no image in {here}/empty"),
        (["loop"], "loop is not a folder"),
        (["broken"], "data.root: no readable image in {here}/broken"),
        (["lone"], "data: 1 image in 1 group; weights, "),
        (["lone", "format=yaml"], "format=yaml: use text or json"),
        (["lone", "data.side=0"], "data.side: 0 is not a number of pixels"),
        (["lone", "data.sied=8"], "data.sied: no such key; did you mean data.side?"),
        (["lone", "data.root=empty"], "data.root: it is the folder that is inspected"),
        (["lone", "empty"], "empty: inspect takes one folder"),
        (["format=json"], "inspect takes a folder (see mae-nas inspect --help)"),
        (["lr=0.1"], "data.root: no image in {here}/lr=0.1"),
        ([""], "'': inspect takes a folder, format=…, KEY=VALUE"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("empty", "broken", "lone", "lr=0.1"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "broken" / "a.png").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    save(tmp_path / "lone" / "a.png", noise(0, 32, 32, 3))
    assert main(["inspect", *arguments]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"mae-nas: {line.format(here=tmp_path)}")
