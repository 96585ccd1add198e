import json
from pathlib import Path

import pytest

from mae_nas.cli.main import main
from mae_nas.genotype import PUBLISHED
from mae_nas.network import NetworkSize
from mae_nas.network.complexity import Place
from mae_nas.runs.bench import GROWING, WAYS
from mae_nas.runs.train_bench import TRAIN_WAYS, _TrainStep

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "bench takes what is to be timed: mae-nas bench search"),
        (["search", "width=0"], "width=0: must be a whole number, 1 or more"),
        (["search", "growth=yes"], "growth=yes: use true or false"),
        (["search", "format=yaml"], "format=yaml: use text or json"),
        (["search", "wdith=8"], "did you mean width?"),
        (["search", "record=test_bench.py/x"], "record: test_bench.py is a file, not a folder"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_one_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    assert main(["bench", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.slow
def test_a_record_holds_the_rows_and_growth_is_drawn_beside_it(
    tmp_path: Path, capsys: Captured
) -> None:
    record = tmp_path / "records.jsonl"
    small = ["width=8", "depth=3", "side=16", "batch=2", "repeats=1"]
    assert main(["bench", "search", *small, "growth=true", f"record={record}"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(WAYS)
    assert "ratio" in head
    (stored,) = map(json.loads, record.read_text().splitlines())
    assert [row["name"] for row in stored["rows"]] == list(WAYS)
    assert stored["setting"]["width"] == 8
    grown = stored["growth"]
    settings = [(row["side"], row["width"]) for row in grown[:: len(GROWING)]]
    assert settings == [(16, 8), (8, 8), (32, 8), (16, 4), (16, 16)]
    assert [row["name"] for row in grown] == [*GROWING] * 5
    assert {"git", "versions", "device"} <= stored.keys()
    assert (tmp_path / "growth.png").exists()
    assert main(["bench", "search", *small, "format=json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(WAYS)


def test_a_training_step_is_timed_beside_the_plain_one(capsys: Captured, tmp_path: Path) -> None:
    small = ["width=4", "depth=3", "side=16", "batch=6", "repeats=2"]
    words = ["bench", "train", *small, "genotype=PDARTS", f"record={tmp_path}/deep/records.jsonl"]
    assert main([*words, "format=json"]) == 0
    plain, ours, pretraining = json.loads(capsys.readouterr().out)
    assert pretraining["name"] == "pretraining"
    assert (plain["name"], ours["name"], plain["ratio"]) == ("plain", "ours", 1.0)
    assert ours["ratio"] == pytest.approx(plain["seconds"] / ours["seconds"])
    assert ours["images_per_second"] == pytest.approx(6 / ours["seconds"])
    assert ours["hours"] == pytest.approx(600 * 50_000 / 6 * ours["seconds"] / 3600)
    assert 0 < ours["of_multiplication_rate"] < 1
    record = json.loads((tmp_path / "deep" / "records.jsonl").read_text())
    assert record["rows"] == [plain, ours, pretraining]
    assert record["setting"]["genotype"] == "PDARTS"
    assert main(["bench", "train", "width=5"]) == 2
    assert "width 5: must be even" in capsys.readouterr().err


def test_both_ways_of_training_compute_the_same() -> None:
    place = Place(NetworkSize(4, 3), 3, 16, 10)
    genotype = PUBLISHED["NASNet"]
    steps = [_TrainStep(way, genotype, place, 5) for way in TRAIN_WAYS.values()]
    for _ in range(3):
        losses = [float(step.loss().detach()) for step in steps]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        for step in steps:
            step()
    assert steps[0].network.layout != steps[1].network.layout
