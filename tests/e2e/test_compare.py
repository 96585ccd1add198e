"""`mae-nas compare`: equally fast networks, pretrained and probed once, and a table of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from mae_nas.cli.compare import compared
from mae_nas.cli.main import main

TINY = [
    *("compare", "genotypes=DARTS_V1,random:0", "models=resnet18", "seeds=2", "most=100"),
    *("budget_minutes=0.0001", "network=tiny", "data.batch_size=32", "data.held_out=20"),
    *("trainer.accelerator=cpu", "output=out"),
]


@pytest.mark.slow
def test_a_comparison_is_made_once_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "format=json"]) == 0
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [(row["network"], row["seed"]) for row in rows] == [
        (name, seed) for seed in (0, 1) for name in ("DARTS_V1", "random_0", "resnet18")
    ]
    for row in rows:
        assert row["final"]["step"] == row["steps"]
        assert row["probe"]["train_images"] == 100
        assert (row["width"] is None) == (row["network"] == "resnet18")
        assert row["config"]["pretraining"]["steps"] == row["steps"]
    assert (tmp_path / "out" / "compare.png").stat().st_size > 10_000
    # A job and an answer that are gone are made again, the same; nothing else is.
    gone = tmp_path / "out" / "random_0-seed1"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/summary.json")}
    (gone / "probe.json").unlink()
    capsys.readouterr()
    assert main(TINY) == 0
    said = capsys.readouterr().out
    assert said.count("finished already") == 6
    assert said.count(": probing") == 1
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == rows
    assert "linear probe, %, DARTS_V1 less it" in said
    assert main([*TINY, "most=90", "format=json"]) == 0  # other probes of the same networks
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert {row["probe"]["train_images"] for row in rows} == {90}
    assert main([*TINY, "batch=2"]) == 2
    assert "out holds another comparison" in capsys.readouterr().err


@pytest.mark.slow
def test_a_pretraining_that_fails_is_named_and_nothing_is_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*TINY, "models=", "latency_ms=60", "seeds=1", "pretraining.optimizer.lr=1e38"]
    assert main(words) == 1
    said = capsys.readouterr()
    assert "2 of 2 pretrainings have not ended: DARTS_V1-seed0: " in said.err.splitlines()[-1]
    assert "probing" not in said.out
    assert not (tmp_path / "out" / "compare.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["models=resnet18"], "genotypes: needed"),
        (["genotypes=DARTS_V1"], "models: needed"),
        (["genotypes=DARTS_V1", "models=resnet19"], "model: resnet19: timm has no such model"),
        (["genotypes=DARTS_V9", "models=resnet18"], "genotype 'DARTS_V9': no such file"),
        (["genotypes=DARTS_V1,DARTS_V1", "models=resnet18"], "two of them have the same name"),
        (["genotypes=DARTS_V1", "models=resnet18", "budget_minutes=0"], "budget_minutes=0: must"),
        (["genotypes=DARTS_V1", "models=resnet18", "seeds=x"], "seeds=x: must be a whole"),
        (["genotypes=DARTS_V1", "latency_ms=1e-6"], "DARTS_V1: at width 2 the network takes"),
        (["genotypes=DARTS_V1", "latency_ms=-1"], "latency_ms=-1: must be a number above 0"),
        (["genotypes=DARTS_V1", "models=resnet18", "mask.rato=1"], "mask.rato: no such key"),
        (["genotypes=DARTS_V1", "models=resnet18", "seed=3"], "did you mean seeds?"),
        (["genotypes=DARTS_V1", "models=resnet18", "budget_minute=3"], "mean budget_minutes?"),
        (
            ["genotypes=DARTS_V1", "models=resnet18", "+pretraining.steps=3"],
            "compare sets pretraining.steps itself, of budget_minutes=",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words, "network=tiny"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "genotypes=DARTS_V1", "latency_ms=9", "output=FILE/a"],
        ["embed", "checkpoint=run", "output=FILE/a/f.npz"],
        ["probe", "checkpoint=run", "output=FILE/f.json"],
        ["derive", "run=run", "output=FILE/a"],
    ],
)
def test_a_file_where_a_folder_is_to_be_is_found_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    assert main(words) == 2
    assert capsys.readouterr().err == "mae-nas: output: FILE is a file, not a folder\n"


def row(
    network: str, seed: int, linear: float, rank: float, latency: float = 1.25
) -> dict[str, Any]:
    return {
        "network": network,
        "seed": seed,
        "width": 4,
        "params": 1.5e6,
        "steps": 9,
        "latency_ms": {"low": 1.0, "median": latency, "high": 2.0},
        "wall_seconds": 60.0 * (1 + seed),
        "probe": {
            "features": 64,
            "network": {"linear": {"top1": linear}, "rank_me": rank},
            "random": {"linear": {"top1": 0.25}},
        },
    }


def test_one_seed_has_no_interval() -> None:
    first, second = compared([row("a", 0, 0.5, 7.0), row("b", 0, 0.6, 7.0)])
    assert first["linear probe, %"] == "50.0 (one seed: no interval)"
    apart = second["linear probe, %, a less it"]
    assert apart == "-10.0 (one seed: no interval), not distinguishable"


def test_what_cannot_be_told_is_said() -> None:
    rows = [row("a", i, 0.5 + 0.01 * i, 7.0 + i) for i in range(3)]
    rows += [row("b", i, 0.5 + 0.01 * i, 70.0 + i) for i in range(3)]
    rows += [row("c", i, 0.9 + 0.01 * i, 70.0 + i, 1.4) for i in range(3)]
    first, second, slower = compared(rows)
    assert first["linear probe, %"] == "51.0 [48.5, 53.5]"  # t of 2, 4.303, by 1 / √3
    assert "kNN" not in first
    assert not any("less" in key for key in first)
    assert second["linear probe, %, a less it"] == "+0.0 [-2.3, +2.3], not distinguishable"
    assert slower["linear probe, %, a less it"] == "-40.0 [-42.3, -37.7]; not equally fast"
    assert second["linear probe, %, random weights"] == "25.0"
    assert second["minutes, with readings"] == "1.0 to 3.0"
    assert second["RankMe"] == "71.0 [68.5, 73.5]"
    assert not any("RankMe" in key and "less" in key for key in second)  # it ranks nothing
