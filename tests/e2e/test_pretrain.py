"""`mae-nas pretrain`, `embed`, `probe`, and what goes on from them, no label used."""

import fcntl
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import mae_nas.timm  # noqa: F401 - registers the model
from mae_nas.cli.main import main
from mae_nas.cli.probe import Part, worth
from mae_nas.data import Digits
from mae_nas.data.stream import stream
from mae_nas.network.export import reload
from mae_nas.network.stored import restore
from mae_nas.runs import embedding

TINY = [
    *("pretrain", "genotype=DARTS_V1", "data=digits", "data.side=16", "network=tiny"),
    *("network.width=4", "network.depth=3", "mask.patch_size=4", "data.batch_size=120"),
    *("trainer.max_epochs=3", "trainer.log_every=1", "seed=4"),
    *("trainer.accelerator=cpu", "trainer.preflight=false", "efficiency.threads=1"),
]
"""Thirteen steps an epoch, 39 in all."""
PARTS = [
    ["trainer.max_steps=7", "efficiency.workers=0"],
    ["trainer.max_steps=20", "efficiency.resident=false", "efficiency.workers=1"],
    ["efficiency.workers=0"],
]
"""One, in three parts."""
EXACT = ["trainer.precision=64-true", "trainer.sync_batchnorm=true"]
Start = Callable[..., subprocess.Popen[str]]
AssertSame = Callable[[Path, Path], None]
Pretrain = Callable[..., int]


@pytest.fixture
def pretrain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pretrain:
    """`mae-nas pretrain` in an empty folder, in this process, without drawing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mae_nas.cli.pretrain.draw_masked", lambda *_: None)
    return lambda *overrides: main([*TINY, *overrides])


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole one, its pictures drawn."""
    run = tmp_path_factory.mktemp("pretrained") / "run"
    assert main([*TINY, f"hydra.run.dir={run}"]) == 0
    return run


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def saved(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_pretraining_learns_and_leaves_the_names_that_scripts_rely_on(
    pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = summary(pretrained)
    assert (record["state"], record["epochs"], record["seed"]) == ("finished", 3, 4)
    rows = (pretrained / "readings.jsonl").read_text().splitlines()
    readings = [json.loads(row) for row in rows]
    assert readings[-1]["step"] == 39
    assert readings[-1] == record["final"]
    assert readings[-1]["held_out_loss"] < readings[0]["held_out_loss"]
    assert readings[-1]["held_out_loss"] < record["yardsticks"]["constant"]
    assert {"losses.png", "reconstructions.png"} <= {
        path.name for path in (pretrained / "plots").iterdir()
    }
    assert main(["runs", str(pretrained), "format=json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    shown = (listed["state"], listed["step"], listed["loss"], listed["top1"])
    assert shown == ("finished", 39, record["final"]["held_out_loss"], None)
    assert main(["report", str(pretrained)]) == 0
    page = (pretrained / "report.html").read_text()
    for text in ("Pretraining run", "mae-nas pretrain genotype=DARTS_V1", "constant"):
        assert text in page
    for words in ("test checkpoint=", "derive run="):
        assert main(f"{words}{pretrained}".split()) == 2
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert "pretraining" in error


def test_one_that_goes_on_ends_as_if_it_had_not_stopped(
    pretrain: Pretrain, tmp_path: Path, assert_same: AssertSame
) -> None:
    assert pretrain("hydra.run.dir=whole", "efficiency.workers=0") == 0
    parts = ["hydra.run.dir=parts", "resume=auto"]
    for more in PARTS:
        assert pretrain(*parts, *more) == 0
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_one_of_timm_goes_on_too(start: Start, tmp_path: Path, assert_same: AssertSame) -> None:
    """Each part in a process of its own."""
    model = [*TINY, "model=resnet18", "genotype=null", "data.side=32", "resume=auto"]
    for folder, parts in (("whole", [["efficiency.workers=0"]]), ("parts", PARTS)):
        for more in parts:
            process = start(command=[*model, f"hydra.run.dir={folder}", *more])
            said, _ = process.communicate(timeout=600)
            assert process.returncode == 0, said
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_one_that_is_killed_ends_as_if_it_had_not_been(
    start: Start, tmp_path: Path, wait_for: Callable[..., None], assert_same: AssertSame
) -> None:
    undrawn = tmp_path / "undrawn.py"
    for folder, kills in (("whole", ()), ("killed", (3, 9, 22))):
        command = [*TINY, f"hydra.run.dir={folder}", "resume=auto"]
        often = "trainer.checkpoint_seconds=0.02"
        for lines in kills:
            process = start(often, command=command)
            wait_for(process, tmp_path / folder / "metrics.csv", lines)
            process.kill()
            process.communicate()
            assert (tmp_path / folder / "checkpoints" / "last.ckpt").exists()
        process = start(often, command=command)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert undrawn.exists()
    assert_same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_two_ranks_end_as_one(start: Start, tmp_path: Path) -> None:
    for folder, devices in (("one", 1), ("two", 2)):
        command = [*TINY, *EXACT, f"hydra.run.dir={folder}", f"trainer.devices={devices}"]
        process = start(command=command)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    first, second = saved(tmp_path / "one"), saved(tmp_path / "two")
    for name, values in first["state_dict"].items():
        torch.testing.assert_close(values, second["state_dict"][name], rtol=1e-9, atol=1e-9)


def test_steps_are_the_length_of_the_schedule(pretrain: Pretrain, tmp_path: Path) -> None:
    assert pretrain("hydra.run.dir=run", "pretraining.steps=4", "trainer.log_every=1") == 0
    assert summary(tmp_path / "run")["final"]["step"] == 4
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("learning_rate")
    rates = [float(row.split(",")[column]) for row in rows[1:]]
    whole = 1e-3 * 120 / 256
    assert rates == pytest.approx([whole * share for share in (1, 1, 0.75, 0.25)])


@pytest.mark.parametrize("more", [["decoder=unet"], ["decoder=simmim", "objective.norm_pix=true"]])
def test_decoders_and_targets_are_those_of_a_search(
    pretrain: Pretrain, tmp_path: Path, more: list[str]
) -> None:
    assert pretrain("hydra.run.dir=run", *more, "pretraining.steps=2") == 0
    assert summary(tmp_path / "run")["state"] == "finished"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["model=resnet18"], "genotype: give it, or model=TIMM_NAME, and not both"),
        (["genotype=null"], "genotype: give it, or model=TIMM_NAME, and not both"),
        (["genotype=null", "model=resnet19"], "model: resnet19: timm has no such model"),
        (["genotype=nothing"], "genotype 'nothing': no such file"),
        (["decoder.taps=[1,2]"], "decoder.taps: must have 3 among them"),
        (["mask.mode=sparse"], "mask.mode: must be dense here"),
        (["mask.patch_size=5"], "mask: patch_size 5 does not divide the image side 16"),
        (["pretraining.warmup=1.5"], "pretraining: warmup 1.5: must lie in [0, 1)"),
        (["trainer.accumulate=7"], "data.batch_size 120: must be a multiple of 7"),
        (
            ["objective.target=permuted", "trainer.accumulate=2"],
            "objective.target=permuted takes the target from the same micro-batch",
        ),
        (
            ["genotype=null", "model=resnet18", "data.side=16"],
            "model: side 16 is not a multiple of 32",
        ),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    pretrain: Pretrain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    said: str,
) -> None:
    assert pretrain(*given, "hydra.run.dir=run") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"mae-nas: {said}")
    assert not (tmp_path / "run").exists()


def embedded(run: Path, output: Path, *more: str) -> Any:  # noqa: ANN401 - numpy's
    assert main(["embed", f"checkpoint={run}", f"output={output}", *more]) == 0
    return np.load(output)


@pytest.mark.parametrize(
    "kinds", [["timm"], pytest.param(["timm", "safetensors", "onnx"], marks=pytest.mark.slow)]
)
def test_features_are_the_same_wherever_they_are_asked_for(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: list[str]
) -> None:
    """Bits, by embed, probe and timm; by exported files to 1e-5."""
    monkeypatch.chdir(tmp_path)
    found = embedded(pretrained, tmp_path / "f.npz")
    assert found["features"].dtype == np.float32
    assert found["features"].shape == (1797, 64)
    assert found["files"].tolist() == list(Digits().load().files)
    stored = restore(saved(pretrained), pretrained)
    store = stored.preprocessing.apply(Digits(side=16).load())
    batches = list(stream(store, np.arange(1797), 64, torch.device("cpu")))
    seen: list[torch.Tensor] = []

    def keep(features: torch.Tensor) -> float:
        seen.append(features)
        return 0.0

    monkeypatch.setattr("mae_nas.network.probing.rank_me", keep)
    part = Part(store, np.arange(1797))
    worth(stored.network, part, None, ("rank_me",), 64, torch.device("cpu"), 0)
    assert np.array_equal(seen[0].numpy(), found["features"])
    for kind in kinds:
        file = tmp_path / f"{kind}.{'onnx' if kind == 'onnx' else 'safetensors'}"
        given = [f"checkpoint={pretrained}", f"format={kind}", f"output={file}", "images=64"]
        assert main(["export", *given]) == 0
        pooled = reload(kind, file)
        some = [pooled(batch.image.numpy()) for batch in batches[:3]]
        np.testing.assert_allclose(
            np.concatenate(some), found["features"][: 3 * 64], rtol=1e-5, atol=1e-5
        )
    model = timm.create_model("mae_nas", genotype=str(tmp_path / "timm.safetensors")).eval()
    with torch.inference_mode():
        maps = [model.forward_features(batch.image) for batch in batches]
    features = torch.cat([model.forward_head(each, pre_logits=True) for each in maps])
    assert np.array_equal(features.numpy(), found["features"])


@pytest.mark.slow
def test_embed_that_is_killed_gives_the_same_bytes(
    start: Start, pretrained: Path, tmp_path: Path, wait_for: Callable[..., None]
) -> None:
    whole = embedded(pretrained, tmp_path / "whole.npz", "batch=2")
    words = ("embed", f"checkpoint={pretrained}", "output=parts.npz", "batch=2")
    state = tmp_path / "parts.npz.part" / "state.json"
    done = 0
    for _ in range(3):
        process = start(command=words)
        while not state.exists() or json.loads(state.read_text())["done"] < done + 60:
            wait_for(process, state)
        process.kill()
        process.communicate()
        done = json.loads(state.read_text())["done"]
        assert 0 < done < 1797
    process = start(command=words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert f"({done:,} of them were there already)" in said
    parts = np.load(tmp_path / "parts.npz")
    for name in ("features", "files"):
        assert np.array_equal(whole[name], parts[name])
    assert not state.parent.exists()


def test_probe_says_what_features_are_worth(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"checkpoint={pretrained}", "most=150", "probes=rank_me,knn,few"]
    assert main(["probe", *given, "format=json", f"output={tmp_path / 'a.json'}"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads((tmp_path / "a.json").read_text())
    assert (facts["train_images"], facts["test_images"], facts["features"]) == (150, 359, 64)
    for network in (facts["network"], facts["random"]):
        assert 1 < network["rank_me"] < 64
        low, high = network["knn"]["interval"]
        assert 0.1 < low < network["knn"]["top1"] < high  # better than chance
        assert network["few_10"]["images"] == 15
        assert set(network["few_1"]) == {"images", "knn", "linear"}
    assert main(["probe", *given]) == 0
    page = capsys.readouterr().out
    assert "150 training images, 359 test images" in page
    assert f"{facts['network']['knn']['top1']:.1%}" in page


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("probe probes=knn data=folder data.root=FLAT", "probes=knn: needs labels"),
        ("probe probes=kn", "probes=kn: use auto"),
        ("probe data=cifar10 data.root=FLAT", "data.root"),
        ("probe output=FLAT", "output="),
        ("probe batch=0", "batch=0: must be a whole number"),
        ("probe seed=-1", "seed=-1"),
        ("embed output=f.npz data.side=8", "data.side: needs data=… as well"),
        ("embed output=f.npz side=8", "side=8: no such option of embed; images are"),
        ("embed output=f.txt", "output=f.txt: name a .npz or .csv file"),
        ("embed output=f.npz neighbors=a.png", "no such option of embed; did you mean neighbours?"),
        ("embed checkpoint= output=f.npz", "checkpoint: needed, e.g. checkpoint=runs/pretrain/"),
        ("embed output=", "output=: name a .npz or .csv file"),
        ("embed output=f.npz device=gpu", "device=gpu: use auto"),
        (
            "embed output=f.npz data=synthetic data.channels=3",
            "data: its images have channels 3, the network's 1",
        ),
        ("embed output=f.npz data=folder data.root=/no", "data.root: /no does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    said: str,
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(4):
        Image.new("L", (16, 16), i).save(flat / f"{i}.png")
    name, *words = command.replace("FLAT", str(flat)).split()
    assert main([name, f"checkpoint={pretrained}", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["flat"]


def test_nobody_else_may_begin_a_table_that_is_being_written(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, held = embedding.WRITERS[".npz"], []

    def beside(file: Path, rows: Any, files: Sequence[str]) -> None:  # noqa: ANN401 - an array
        lock = (tmp_path / "f.npz.part" / "lock").open()
        with lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(file)
        write(file, rows, files)

    monkeypatch.setitem(embedding.WRITERS, ".npz", beside)
    found = embedded(pretrained, tmp_path / "f.npz", "batch=600")
    assert len(held) == 1
    assert len(found["features"]) == 1797
    assert [file.name for file in tmp_path.iterdir()] == ["f.npz"]


def test_a_flat_folder_gives_features_and_a_rank_without_labels(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    values = np.random.default_rng(1).integers(0, 255, (9, 20, 24), np.uint8)
    for i, pixels in enumerate(values):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    data = ["data=folder", f"data.root={tmp_path}", "data.cache=null"]
    found = embedded(pretrained, tmp_path / "out" / "f.npz", *data)
    assert found["files"].tolist() == [f"{i}.png" for i in range(9)]
    assert main(["probe", f"checkpoint={pretrained}", *data, "format=json"]) == 0
    facts = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert set(facts["network"]) == {"rank_me"}
    assert (facts["train_images"], facts["test_images"]) == (9, 0)


def test_a_training_begins_with_pretrained_weights(
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("plot_curves", "plot_classes"):
        monkeypatch.setattr(f"mae_nas.cli.train.{name}", lambda *_: None)
    words = ["train", f"genotype={pretrained}", *TINY[2:7], "data.batch_size=120", "seed=4"]
    words = [word for word in words if not word.startswith("mask")]
    words += [*TINY[-3:], "recipe=quick", "recipe.optimizer.lr=1e-12", "trainer.max_steps=2"]
    assert main([*words, f"init_from={pretrained}", "hydra.run.dir=one"]) == 0
    trained, given = saved(tmp_path / "one")["state_dict"], saved(pretrained)["state_dict"]
    weights = [n for n in trained if "backbone" in n and n.endswith("weight")]
    assert len(weights) > 40
    for name in weights:
        torch.testing.assert_close(trained[name], given[name], rtol=1e-6, atol=1e-6)
    # It goes on where it was, not from the pretrained weights, which may be gone.
    (tmp_path / "gone").mkdir()
    again = [*words, f"init_from={pretrained}", "hydra.run.dir=one", "resume=auto"]
    assert main([*again, "trainer.max_steps=3"]) == 0
    for other, said in (
        (f"{tmp_path}/none", "init_from: "),
        (str(pretrained), "init_from: .* is of another size; use network.width=4"),
    ):
        capsys.readouterr()
        size = [] if "none" in other else ["network.width=6"]
        assert main([*words, *size, f"init_from={other}", "hydra.run.dir=two"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert re.search(said, line)
        assert not (tmp_path / "two").exists()
