"""What a search refuses: a line of text, code 2, and nothing changed on disk."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mae_nas.cli.main import main

Search = Callable[..., int]
Captured = pytest.CaptureFixture[str]
Snapshot = Callable[[Path], dict[str, bytes]]
Finished = Callable[..., Path]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["mask.ratio=1.5"], "mask.*ratio 1.5"),
        (["mask.patch_size=3"], "patch_size 3 does not divide the image side 8"),
        (["mask.patch_size=8"], "at least one must be hidden and one visible"),
        (["data.side=10"], "side 10 is not a multiple of 4"),
        (["mask.mode=sparse", "decoder=simmim", "mask.patch_size=4"], "decoder.kernel=3"),
        (["supernet.width=3"], "width 3: must be even"),
        (["supernet.depth=2"], "depth 2: at least 3"),
        (["decoder.taps=[1,4]"], "taps"),
        (["decoder.kernel=2"], "kernel 2: must be odd"),
        (["data=folder", "data.root=missing"], "missing"),
        (["data=folder", "data.root=empty"], "empty"),
        (["data=folder", "data.root=texts"], "texts"),
        (["data=cifar10", "data.root=missing"], "missing"),
        (["data.batch_size=200"], "batch"),
        (["trainer.accumulate=3"], "data.batch_size 4: must be a multiple of 3"),
        (["trainer.precision=16-true"], "precision"),
        (["objective.target=permuted", "trainer.accumulate=2"], "accumulate=1"),
        (["search.warmup_epochs=-1"], "warmup_epochs -1"),
        (["search.weight_optimizer.lr=-1.0"], "learning rate"),
        (["resume=missing"], "resume: missing does not exist"),
        (["seed=-1"], "seed: -1"),
        (["relaxation=custom", "relaxation._target_=missing_module.Mine"], "no module missing"),
        (
            ["search.second_order=true", "search.weight_optimizer._target_=torch.optim.RMSprop"],
            "search.second_order: looks ahead by a step of SGD",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny: list[str],
    capsys: Captured,
    overrides: list[str],
    said: str,
    snapshot: Snapshot,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("not a picture")
    before = snapshot(tmp_path)
    assert main(["search", *tiny[:1], *tiny[2:], *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mae-nas: ")
    assert re.search(said, line), line
    assert snapshot(tmp_path) == before


def test_a_second_run_never_enters_the_folder_of_a_first(
    search: Search,
    finished: Finished,
    capsys: Captured,
    snapshot: Snapshot,
) -> None:
    run = finished()
    before = snapshot(run)
    assert search(f"hydra.run.dir={run}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "already holds a run; continue it with resume=auto" in line
    assert snapshot(run) == before


def test_a_changed_configuration_is_refused_naming_the_keys(
    search: Search,
    finished: Finished,
    capsys: Captured,
    snapshot: Snapshot,
) -> None:
    run = finished()
    before = snapshot(run)
    changed = ["mask.ratio=0.6", "seed=4", "data.batch_size=2"]
    assert search(f"hydra.run.dir={run}", "resume=auto", *changed) == 2
    said = capsys.readouterr().err
    for key in ("mask.ratio", "seed", "data.batch_size"):
        assert key in said
    assert "Traceback" not in said
    assert snapshot(run) == before


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused_in_one_line(
    search: Search,
    finished: Finished,
    tmp_path: Path,
    capsys: Captured,
    snapshot: Snapshot,
) -> None:
    run = tmp_path / "run"
    assert search("hydra.run.dir=run", "trainer.max_steps=2") == 0
    checkpoint = run / "checkpoints" / "last.ckpt"
    whole = checkpoint.read_bytes()
    alien = torch.load(finished() / "checkpoints" / "last.ckpt", weights_only=True)
    alien["config_hash"] = "0" * 32
    damages = {
        "truncated": lambda: checkpoint.write_bytes(whole[: len(whole) // 2]),
        "empty": lambda: checkpoint.write_bytes(b""),
        "text": lambda: checkpoint.write_text("hello"),
        "another search": lambda: torch.save(alien, checkpoint),
        "other tensors": lambda: torch.save({"a": torch.zeros(2)}, checkpoint),
    }
    for name, damage in damages.items():
        damage()
        before = snapshot(run)
        capsys.readouterr()
        assert search("hydra.run.dir=run", "resume=auto") == 2, name
        (line,) = capsys.readouterr().err.splitlines()
        assert "last.ckpt" in line, name
        after = snapshot(run)
        changed = {key for key in after if after[key] != before.get(key)}
        assert changed <= {"run.lock", "train.log"}, name
