"""The best cells under limits, from a run folder."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mae_nas.backbone import CELL_KINDS
from mae_nas.cli.main import main
from mae_nas.genotype import read_genotype
from mae_nas.spaces import S0
from mae_nas.spaces.derivation import derive

SMALL = ["network.width=4", "network.depth=3", "classes=3"]
MY_SPACE = """
from mae_nas.spaces import S2

class Mine(S2):
    pass
"""
Answer = Callable[..., dict[str, Any]]


def scores(seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {kind: generator.random(S0().shape(kind)) for kind in CELL_KINDS}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A search of S0, read at steps 5 and 9."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"space": {"_target_": "mae_nas.spaces.S0"}, "data": {"side": 16}}
    stored = {"format": "mae_nas.config/1", "config": config, "overrides": []}
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "summary.json").write_text(json.dumps({"data": {"side": 16, "channels": 1}}))
    rows = [
        {"step": step, "scores": {kind: table.tolist() for kind, table in scores(step).items()}}
        for step in (5, 9)
    ]
    (folder / "genotypes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def answer(run: Path, capsys: pytest.CaptureFixture[str]) -> Answer:
    def _answer(*words: str) -> dict[str, Any]:
        assert main(["derive", f"run={run}", *SMALL, "format=json", *words]) == 0
        return json.loads(capsys.readouterr().out)

    return _answer


def test_without_a_limit_the_cells_are_those_of_the_reading(answer: Answer, run: Path) -> None:
    for words, step in (((), 9), (("reading=5",), 5)):
        found = answer(*words)
        expected, totals = derive(scores(step), S0())
        assert found["genotype"] == expected.to_dict()
        assert found["score"] == pytest.approx(sum(totals.values()))
        assert (found["reading"], found["limits"]) == (step, {})
    assert (found["side"], found["channels"], found["classes"]) == (16, 1, 3)
    assert read_genotype(str(run / "derived")) == expected


@pytest.mark.parametrize(("network", "side"), [("tiny", 16), ("cifar", 16), ("imagenet", 224)])
def test_images_are_the_searchs_where_the_stem_is_for_them(
    run: Path, network: str, side: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["derive", f"run={run}", f"network={network}", "max_macs=1e-6"]) == 2
    where = f"(network={network}, images of side {side}; see network= and side=)\n"
    assert capsys.readouterr().err.endswith(where)


def test_limits_are_kept_and_profile_counts_the_same(
    answer: Answer, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = answer()
    assert free.keys() >= {"genotype", "score", "macs", "params", "skips", "latency_ms"}
    assert free["latency_ms"] is None
    least = free["front"]["macs"][0]["macs"] / 1e6
    most = (free["macs"] / 1e6 + 3 * least) / 4
    params = free["params"] * 0.8e-6
    found = answer(f"max_macs={most}", f"max_params={params}", "max_skips=1")
    assert found["macs"] <= 1e6 * most
    assert found["params"] <= 1e6 * params
    assert found["skips"] <= 1
    assert found["score"] < found["unlimited"]["score"] == free["score"]
    words = [f"genotype={run}/derived", *SMALL, "side=16", "channels=1", "speed=false"]
    assert main(["profile", *words, "format=json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert (counted["macs"], counted["params"]) == (found["macs"], found["params"])
    # Any point of the front is what a limit there gives.
    point = free["front"]["macs"][len(free["front"]["macs"]) // 2]
    assert answer(f"max_macs={point['macs'] / 1e6}")["score"] == point["score"]


def test_latencies_are_measured_once_for_a_place(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["derive", f"run={run}", *SMALL, "seconds=0.001", "checked=2"]
    said = []
    for more in (["latency=true"], ["max_latency_ms=1e6"], ["latency=true", "checked=3"]):
        assert main([*words, *more]) == 0
        said.append(capsys.readouterr().out)
    for more in (["latency=true"], ["max_latency_ms=1e6", "batch=2"]):
        assert main([*words, *more]) == 0
        said.append(capsys.readouterr().out)
    assert "latencies measured: predicted latencies of 2 random cells" in said[0]
    assert f"latencies of {run}/derived/latency.json: predicted" in said[1]
    anew = f"latencies measured anew, more than for {run}/derived/latency.json: predicted"
    assert f"{anew} latencies of 3 random cells" in said[2]
    assert f"latencies of {run}/derived/latency.json: predicted" in said[3]  # three are more
    assert f"measured anew, since {run}/derived/latency.json was measured elsewhere" in said[4]
    assert main([*words, "batch=2", "latency=true", "format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    front = found["front"]["latency"]
    assert found["latency_ms"] == front[-1]["latency_ms"] > 0
    assert found["latency"]["where"]["batch"] == 2
    least = front[0]["latency_ms"]
    assert main([*words, "batch=2", "max_latency_ms=1e-6"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("mae-nas: max_latency_ms=1e-6: the least that these cells take is ")
    assert least <= float(line.split(" take is ")[1].split()[0].replace(",", "")) <= least + 1e-4


def test_the_page_shows_the_cells_and_at_most_twelve_of_the_front(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["derive", f"run={run}", *SMALL, "max_skips=2"]) == 0
    text, head, chosen, free, place, front = capsys.readouterr().out.splitlines()[:6]
    assert read_genotype(text) == read_genotype(str(run / "derived"))
    assert head.split() == ["cells", "score", "macs", "M", "params", "M", "skips"]
    assert chosen.startswith("max_skips=2 ")
    assert free.startswith("unlimited ")
    assert "step 9; network of width 4, 3 cells; images of 16 × 16, channels 1" in place
    assert front.startswith("Pareto front of score and skips, all ")
    assert main(["derive", f"run={run}", *SMALL, f"output={run}/other"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(
        i for i, line in enumerate(lines) if line.startswith("Pareto front of score and macs")
    )
    assert lines[at + 14 :] == [
        f"written: {run}/other/{name}" for name in ("genotype.json", "pareto.csv", "pareto.png")
    ]
    with (run / "other" / "pareto.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    macs = [row for row in table if row["front"] == "macs"]
    assert len(macs) > 12
    for line, row in ((lines[at + 2], macs[0]), (lines[at + 13], macs[-1])):
        assert line.split()[0] == f"{float(row['score']):.5f}"
    assert {row["front"] for row in table} == {"macs", "params", "skips"}
    with Image.open(run / "other" / "pareto.png") as image:
        assert image.width > image.height > 300


def test_a_space_of_ones_own_is_named_again(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "derive_space.py").write_text(MY_SPACE)
    monkeypatch.syspath_prepend(str(tmp_path))
    stored = json.loads((run / "config.json").read_text())
    stored["config"]["space"] = {"_target_": "derive_space.Mine"}
    (run / "config.json").write_text(json.dumps(stored))
    write_equal_edges(run)
    assert main(["derive", f"run={run}", *SMALL]) == 2
    assert "names derive_space.Mine, which is not ours" in capsys.readouterr().err
    words = ["space._target_=derive_space.Mine", "max_skips=4", "format=json"]
    assert main(["derive", f"run={run}", *SMALL, *words]) == 0
    assert json.loads(capsys.readouterr().out)["skips"] == 0


def test_limits_that_exclude_each_other_say_the_least_of_one(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = json.loads((run / "config.json").read_text())
    stored["config"]["space"] = {"_target_": "mae_nas.spaces.S2"}
    (run / "config.json").write_text(json.dumps(stored))
    write_equal_edges(run)
    words = ["derive", f"run={run}", *SMALL, "max_macs=0.2"]
    assert main([*words, "max_skips=3"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    first = "mae-nas: max_skips=3: not together with max_macs=0.2, under which the least is "
    assert said.startswith(first)
    least = int(said.removeprefix(first).removesuffix(" skips"))
    assert main([*words, f"max_skips={least - 1}"]) == 2
    assert main([*words, f"max_skips={least}"]) == 0


def write_equal_edges(run: Path) -> None:
    """A reading of a space of two candidates, of which the second is the stronger everywhere."""
    row = {"step": 3, "scores": dict.fromkeys(CELL_KINDS, [[0.4, 0.6]] * 14)}
    (run / "genotypes.jsonl").write_text(json.dumps(row) + "\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["max_macs=0.01"], "max_macs=0.01: the least that these cells take is 0."),
        (["max_macs=x"], "max_macs=x: must be a number above 0"),
        (["max_params=5e6"], "max_params=5e6: is in millions"),
        (["max_latency_ms=-1"], "max_latency_ms=-1: must be a number above 0"),
        (["max_skips=1.5"], "max_skips=1.5: must be a whole number, 0 or more"),
        (["reading=7"], "reading=7: there is none at this step; the nearest: 5"),
        (["reading=first"], "reading=first: must be last or a step, e.g. 9"),
        (["max_mac=3"], "'max_mac=3': derive takes run=…"),
        (["network=cifr"], "network=cifr: use cifar, cifar_small"),
        (["latency=yes"], "latency=yes: use true or false"),
        (["checked=0"], "checked=0: must be a whole number, 1 or more"),
        (["side=18"], "side 18 is not a multiple of 4"),
        (["run="], "run: needed, e.g."),
        (["run=nowhere"], "run: nowhere is not a folder"),
        (["output={run}"], "output: {run} is a run folder"),
        (["output={run}/summary.json"], "output: {run}/summary.json is a file"),
        (["space._target_=mae_nas.spaces.S1"], "space._target_=mae_nas.spaces.S1: the run's is "),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_written(
    words: list[str], line: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(run=run) for word in words]
    before = sorted(run.rglob("*"))
    assert main(["derive", f"run={run}", *SMALL, *given]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"mae-nas: {line.format(run=run)}")
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        ("genotypes.jsonl", "", "run: {run} has no readings yet"),
        ("genotypes.jsonl", '{"step": 1}\n', "{run}/genotypes.jsonl: the normal cell's scores are"),
        ("config.json", "{}", "{run}/config.json is not a configuration"),
        (
            "config.json",
            '{"format": "mae_nas.config/1", "config": {"recipe": {}}}',
            "run: {run} holds a training",
        ),
        (
            "config.json",
            '{"format": "mae_nas.config/1", "config": {"space": {"_target_": "os.system"}}}',
            "space._target_: the stored configuration names os.system, which is not ours",
        ),
    ],
)
def test_a_run_that_cannot_be_read_is_told_in_one_line(
    file: str, content: str, line: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / file).write_text(content)
    assert main(["derive", f"run={run}"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"mae-nas: {line.format(run=run)}")
    assert not (run / "derived").exists()
