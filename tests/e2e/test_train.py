"""`mae-nas train` and `mae-nas test`, from the command line to the record."""

import csv
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae_nas.cli.main import main
from mae_nas.genotype import PUBLISHED, read_genotype
from mae_nas.network import DerivedNetwork, export
from mae_nas.network.training import TrainModule
from mae_nas.runs import train_plots

TINY = [
    *("train", "genotype=DARTS_V1", "data=digits", "data.side=16", "network=tiny"),
    *("network.width=4", "network.depth=3", "network.auxiliary=true", "recipe=quick"),
    *("data.batch_size=120", "trainer.max_epochs=3", "trainer.log_every=1", "seed=4"),
    *("recipe.drop_path=0.2", "recipe.cutout=4", "recipe.mixup=0.2", "recipe.ema=0.9"),
    *("trainer.accelerator=cpu", "trainer.preflight=false", "efficiency.threads=1"),
]
"""Eleven steps an epoch, 33 in all, with all that draws random numbers."""
EXACT = ["trainer.precision=64-true", "trainer.sync_batchnorm=true"]
Start = Callable[..., subprocess.Popen[str]]
AssertSame = Callable[[Path, Path], None]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """`mae-nas train` in an empty folder, in this process, without drawing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mae_nas.cli.train.plot_curves", lambda *_: None)
    monkeypatch.setattr("mae_nas.cli.train.plot_classes", lambda *_: None)
    return lambda *overrides: main([*TINY, *overrides])


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def saved(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_training_learns_and_leaves_the_names_that_scripts_rely_on(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["recipe.drop_path=0", "recipe.mixup=0", "recipe.ema=0", "recipe.cutout=0"]
    assert train("trainer.max_epochs=6", *options, "hydra.run.dir=run") == 0
    record = summary(tmp_path / "run")
    assert record["state"] == "finished"
    assert record["test_top1"] > 0.5  # chance is a tenth
    assert record["test_top5"] >= record["test_top1"]
    assert (record["epochs"], record["seed"], record["test_images"]) == (6, 4, 359)
    assert record["final"]["top1"] == record["test_top1"]
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    rows = (tmp_path / "run" / "readings.jsonl").read_text().splitlines()
    readings = [json.loads(row) for row in rows]
    assert readings[-1]["step"] == 66
    assert readings[-1]["loss"] < readings[0]["loss"]
    capsys.readouterr()
    assert main(["test", "checkpoint=run", "format=json"]) == 0
    tested = json.loads(capsys.readouterr().out)
    for key in ("test_top1", "test_top5", "test_loss", "test_top1_by_class", "test_images"):
        assert tested[key] == record[key], key  # to the last digit
    assert main(["report", "run"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    for shown in ("Training run", f"{record['test_top1']:.4g}", "mae-nas train genotype=DARTS_V1"):
        assert shown in page
    assert "genotype.json" not in page
    assert main(["report", "run", "output=."]) == 2
    assert capsys.readouterr().err == "mae-nas: output: . is a folder; name a file in it\n"
    assert main(["runs", ".", "format=json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    shown = (listed["state"], listed["step"], listed["top1"], listed["loss"])
    assert shown == ("finished", 66, record["test_top1"], record["test_loss"])
    assert main(["test", "checkpoint=run/checkpoints/last.ckpt"]) == 0
    assert capsys.readouterr().out.startswith(f"test accuracy {100 * record['test_top1']:.2f} % ")


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["recipe.policy=rand-m5", "recipe.smallest_crop=0.5"]])
def test_a_training_that_goes_on_ends_as_if_it_had_not_stopped(
    train: Callable[..., int], tmp_path: Path, more: list[str], assert_same: AssertSame
) -> None:
    assert train("hydra.run.dir=whole", *more, "efficiency.workers=0") == 0
    parts = ["hydra.run.dir=parts", *more]
    assert train(*parts, "trainer.max_steps=7", "efficiency.workers=0") == 0
    ways = ["efficiency.resident=false", "efficiency.workers=1"]
    assert train(*parts, "resume=auto", "trainer.max_steps=17", *ways) == 0
    assert train(*parts, "resume=auto", "efficiency.workers=0") == 0
    assert_same(tmp_path / "whole", tmp_path / "parts")
    # Validation leaves the test images alone until the end.
    assert train("hydra.run.dir=judged", "recipe.validates=true", "trainer.max_steps=5") == 0
    record = summary(tmp_path / "judged")
    assert (record["final"]["judged_by"], record["final"]["images"]) == ("validation", 143)
    assert record["test_images"] == 359


@pytest.mark.slow
def test_augmentation_reaches_the_batches(train: Callable[..., int], tmp_path: Path) -> None:
    plain = ["recipe.mixup=0", "recipe.cutout=0", "trainer.max_steps=1"]
    kinds = ("policy=rand-m9", "colour_jitter=0.9", "smallest_crop=0.3", "ema=0")
    losses = set()
    for number, kind in enumerate(kinds):
        assert train(*plain, f"recipe.{kind}", f"hydra.run.dir={number}") == 0
        with (tmp_path / str(number) / "metrics.csv").open(newline="") as file:
            losses.add(next(csv.DictReader(file))["weight_loss"])
    assert len(losses) == len(kinds)


@pytest.mark.slow
def test_trainings_are_swept_over(start: Start, tmp_path: Path) -> None:
    command = ("train", "-m", *TINY[2:], "trainer.max_steps=2", "hydra.sweep.dir=sweep")
    process = start("genotype=DARTS_V1,random:0", "seed=0,1", command=command)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    points = [(row["genotype"], row["seed"]) for row in rows]
    assert sorted(points) == [(g, s) for g in ("DARTS_V1", "random:0") for s in "01"]
    runs = [tmp_path / "sweep" / "genotype=DARTS_V1,seed=0"]
    assert float(rows[0]["top1"]) == pytest.approx(summary(runs[0])["test_top1"])
    assert (tmp_path / "sweep" / "sweep.png").exists()
    assert read_genotype(str(runs[0])) == PUBLISHED["DARTS_V1"]


@pytest.mark.slow
def test_a_killed_training_ends_as_if_nothing_had_happened(
    train: Callable[..., int], tmp_path: Path, start_train: Start, assert_same: AssertSame
) -> None:
    assert train("hydra.run.dir=whole") == 0
    here = ["hydra.run.dir=run", "resume=auto", "trainer.checkpoint_seconds=0.02"]
    for steps in (3, 9):
        process = start_train(*here)
        metrics = tmp_path / "run" / "metrics.csv"
        while process.poll() is None:
            if metrics.exists() and len(metrics.read_text().splitlines()) > steps:
                break
        process.kill()
        process.communicate()
    assert train(*here[:2]) == 0
    assert_same(tmp_path / "whole", tmp_path / "run")


@pytest.fixture
def start_train(start: Start) -> Start:
    """A training in a process of its own."""
    return lambda *overrides: start(*overrides, command=TINY)


@pytest.mark.slow
def test_two_ranks_compute_the_training_of_one(
    train: Callable[..., int], tmp_path: Path, start_train: Start
) -> None:
    # Mixup mixes within a rank's part; augmentation is image by image.
    more = [*EXACT, "recipe.mixup=0", "recipe.policy=rand-m9-mstd0.5", "recipe.colour_jitter=0.4"]
    process = start_train(*more, "trainer.devices=2", "hydra.run.dir=two")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert train(*more, "hydra.run.dir=one") == 0
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    for name, values in one["state_dict"].items():
        assert (values - two["state_dict"][name]).abs().max() < 1e-10, name
    records = [summary(tmp_path / name) for name in ("one", "two")]
    assert records[0]["test_top1_by_class"] == records[1]["test_top1_by_class"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_training_is_the_same_but_for_rounding(
    train: Callable[..., int], tmp_path: Path
) -> None:
    exact = ["trainer.precision=64-true", "trainer.max_steps=3", "trainer.preflight=true"]
    assert train(*exact, "hydra.run.dir=plain") == 0
    assert train(*exact, "hydra.run.dir=compiled", "efficiency.compile=true") == 0
    assert summary(tmp_path / "compiled")["backend"] == "compiled"
    plain, compiled = saved(tmp_path / "plain"), saved(tmp_path / "compiled")
    for name, values in plain["state_dict"].items():
        torch.testing.assert_close(compiled["state_dict"][name], values, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["genotype=DARTS_V3"], "genotype 'DARTS_V3': no such file, run folder"),
        (["network.width=7"], "network: width 7: must be even"),
        (["recipe.schedule=step"], "recipe.schedule: 'step' is not one of cosine, linear"),
        (["recipe.warmup_epochs=3"], "recipe.warmup_epochs 3: must be less than trainer.max_ep"),
        (["recipe.optimizer.lr=-1"], "recipe.optimizer: Invalid learning rate: -1"),
        (["data=synthetic", "~data.held_out"], "data: its images have no labels"),
        (["data.side=18"], "genotype: side 18 is not a multiple of 8"),
        (["trainer.accumulate=7"], "data.batch_size 120: must be a multiple of 7"),
        (["recipe.cutout=17"], "recipe.cutout 17: may hide a whole image of 16 pixels; 0 is none"),
        (["recipe.mixupp=1"], "recipe.mixupp: no such key; did you mean recipe.mixup?"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_left(
    train: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    line: str,
) -> None:
    assert train(*overrides) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"mae-nas: {line}")
    assert list(tmp_path.iterdir()) == []


def test_classes_without_test_images_are_told(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, (part, label) in enumerate((p, c) for p in ("train", "test") for c in "abc"):
        if (part, label) != ("test", "b"):
            (tmp_path / part / label).mkdir(parents=True)
        for i in range(0 if (part, label) == ("test", "b") else 8):
            pixels = np.full((16, 16), 20 * place + i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / label / f"{i}.png")
    words = ["data=folder", "data.root=train", "data.test=test", "data.channels=1", "data.side=16"]
    words += ["data.cache=null", "data.batch_size=8", "trainer.max_steps=2", "hydra.run.dir=run"]
    assert train(*words) == 0
    said = capsys.readouterr().out
    assert "no test images of b" in said
    assert "stopped at 2 of 9 steps: its accuracy says nothing of the cell" in said
    shares = summary(tmp_path / "run")["test_top1_by_class"]
    assert (shares["b"], shares["a"] is None) == (None, False)
    assert main(["test", "checkpoint=run"]) == 0
    assert " b " not in capsys.readouterr().out.splitlines()[1]


def test_other_runs_and_other_classes_are_refused(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("hydra.run.dir=run", "trainer.max_steps=1") == 0
    capsys.readouterr()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    checkpoint = saved(tmp_path / "run")
    lines = {
        "checkpoint=nowhere": "checkpoint: nowhere does not exist",
        "checkpoint=run/summary.json": "checkpoint: run/summary.json is not a checkpoint in a run",
        "": "checkpoint: needed",
        "checkpoint=other": "other/checkpoints/last.ckpt: belongs to a run with another genotype",
    }
    pools = json.dumps(PUBLISHED["DARTS_V1"].to_dict()).replace("max_pool", "avg_pool")
    config["config"]["genotype"] = pools  # of the same tensors
    (other / "config.json").write_text(json.dumps(config))
    torch.save(checkpoint, other / "checkpoints" / "last.ckpt")
    for word, line in lines.items():
        assert main(["test", *filter(None, [word])]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"mae-nas: {line}")
    torch.save(checkpoint | {"classes": '["a"]'}, tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert main(["test", "checkpoint=run"]) == 2
    assert "belongs to a run with another set of classes" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "onnx", "torch_export"])
def test_an_export_is_compared_and_left(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    assert train("hydra.run.dir=run", "trainer.max_steps=4") == 0
    suffix = {"safetensors": ".safetensors", "onnx": ".onnx", "torch_export": ".pt2"}[kind]
    words = [f"format={kind}", f"output=deep/net{suffix}", "images=256"]
    capsys.readouterr()
    assert main(["export", "checkpoint=run", *words]) == 0
    said = capsys.readouterr().out
    found = re.search(r"on 256 test images: largest difference (\S+), the same class for all", said)
    assert found is not None
    assert float(found[1]) < 1e-5
    assert ("by ONNX Runtime" in said) == (kind == "onnx")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [f"net{suffix}"]


def turned(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The first class's scores for the last, and so on."""
    names = ("classifier.weight", "classifier.bias")
    return weights | {name: weights[name].flip(0).contiguous() for name in names}


@pytest.mark.slow
def test_an_export_that_differs_leaves_nothing(
    train: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train("hydra.run.dir=run", "trainer.max_steps=4") == 0
    plain = export.plain

    def spoilt(network: DerivedNetwork) -> dict[str, torch.Tensor]:
        weights = plain(network)
        return weights | {"classifier.bias": weights["classifier.bias"] + 0.01}

    monkeypatch.setattr(export, "plain", spoilt)
    capsys.readouterr()
    assert main(["export", "checkpoint=run", "format=safetensors", "output=net.safetensors"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "outputs of 256 test images differ by up to 0.01 from the network's" in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    # However wide the tolerance: not in what they say.
    monkeypatch.setattr("mae_nas.cli.export.TOLERANCE", 10.0)
    monkeypatch.setattr(export, "plain", lambda net: turned(plain(net)))
    assert main(["export", "checkpoint=run", "format=safetensors", "output=net.safetensors"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "test images have another class, by more than rounding; nothing was written" in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    for words, said in (
        (["format=onx"], "format=onx: use safetensors, timm, onnx, torch_export; did you mean"),
        (["format=onnx", "output=net.pt"], "output: net.pt is no .onnx file"),
        (["format=timm", "images=0"], "images=0: must be a whole number"),
    ):
        assert main(["export", "checkpoint=run", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"mae-nas: {said}")


def test_a_bad_loss_is_told(
    train: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = TrainModule.loss

    def loss(self: TrainModule, batch: Any) -> Any:  # noqa: ANN401 - as the module's
        value, others = plain(self, batch)
        return (value * float("nan") if self.global_step == 3 else value), others

    monkeypatch.setattr(TrainModule, "loss", loss)
    assert train("hydra.run.dir=run") == 1
    record = summary(tmp_path / "run")
    assert "became NaN or infinite at step 3 (seed 4)" in record["reason"]
    assert "a lower recipe.optimizer.lr" in record["reason"]


def test_pictures_are_drawn(tmp_path: Path) -> None:
    rows = [{"epoch": i / 4, "weight_loss": 2 - i / 8, "accuracy": i / 9} for i in range(9)]
    reading = {"epoch": 2.0, "loss": 1.2, "top1": 0.6, "judged_by": "test"}
    train_plots.plot_curves(rows, [reading], tmp_path)
    confusion = torch.randint(0, 9, (40, 40)).numpy()
    train_plots.plot_classes(confusion, [f"class {i}" for i in range(40)], tmp_path)
    for name in ("curves", "classes"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert (tmp_path / f"{name}.svg").exists()
