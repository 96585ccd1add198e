"""A search in one process: from images to a drawing, a record and an exit code."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_nas.cli.main import main
from mae_nas.genotype import Genotype, read_genotype
from mae_nas.relaxations import Fixed
from mae_nas.spaces import S1

Search = Callable[..., int]
Captured = pytest.CaptureFixture[str]
Summary = Callable[[Path], dict[str, Any]]
Finished = Callable[..., Path]


def test_search_ends_with_a_drawn_genotype_and_a_record(
    tmp_path: Path,
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    summary_of: Summary,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["search", *tiny, "trainer.max_steps=2", "name=my_name"]) == 0
    (run,) = (tmp_path / "runs" / "my_name").iterdir()
    genotype = read_genotype(str(run))
    S1().check(genotype)
    assert len(genotype.normal.edges) == len(genotype.reduce.edges) == 8
    rows = [json.loads(line) for line in (run / "genotypes.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert Genotype.from_dict(rows[-1]) == genotype
    assert main(["draw", f"genotype={run}", "output=mine.svg"]) == 0
    assert (tmp_path / "mine.svg").read_text().lstrip().startswith("<?xml")
    for name in ("cells", "alpha", "alpha_history", "losses", "reconstructions"):
        for suffix in ("png", "svg"):
            picture = (run / "plots" / f"{name}.{suffix}").stat()
            assert picture.st_size > 1000
            # Of the last reading, although drawing after the first one took its share of the time.
            assert picture.st_mtime_ns > (run / "genotype.json").stat().st_mtime_ns
    stored = json.loads((run / "config.json").read_text())
    summary = summary_of(run)
    assert summary["config"] == stored["config"]
    assert summary["overrides"] == [*tiny, "trainer.max_steps=2", "name=my_name"]
    assert summary["final"]["step"] == 2
    assert summary["verdict"] == "ok"
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("verdict ok at step 2: ") for line in lines)
    assert any(line.endswith("genotype.json") for line in lines)
    # Two steps teach nothing, and the search says so.
    assert min(summary["yardsticks"].values()) < summary["final"]["held_out_loss"]
    assert not summary["beats_yardsticks"]
    assert any(line.startswith("no better than constant ") for line in lines)
    log = (run / "train.log").read_text()
    assert "verdict ok at step 2" in log
    skips = rows[-1]["skips"]["normal"]
    assert f"  skips {skips} (chance 3.6)  " in log
    assert log[:2] == "20"  # a timestamp


def test_a_given_cell_is_trained_alone(
    search: Search, tmp_path: Path, capsys: Captured, summary_of: Summary
) -> None:
    given = ["relaxation=fixed", "genotype=random:1", "hydra.run.dir=a"]
    assert search(*given, "trainer.max_steps=3") == 0
    assert "edges; α has had no step" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "a" / "metrics.csv").read_text().splitlines()))
    assert {row["arch_loss"] for row in rows} == {""}
    assert {row["weight_loss"] for row in rows} != {""}
    cells = read_genotype("a").cells
    space = Fixed(S1(), "random:1").space
    for kind, cell in cells.items():
        names = dict(zip(space.edges, space.primitives(kind), strict=True))
        assert all(names[edge.source, edge.target] == [edge.primitive] for edge in cell.edges)
    # What a search has found is given as its folder.
    again = ["relaxation=fixed", "genotype=a", "hydra.run.dir=b", "trainer.max_steps=3"]
    assert search(*again) == 0
    assert read_genotype("b") == read_genotype("a")
    # A file counts as it was: another cell in its place is another search.
    assert (
        search("relaxation=fixed", "genotype=random:2", "hydra.run.dir=c", "trainer.max_steps=1")
        == 0
    )
    (tmp_path / "c" / "genotype.json").replace(tmp_path / "a" / "genotype.json")
    capsys.readouterr()
    assert search(*again, "resume=auto") == 2
    assert "b cannot continue with another configuration" in capsys.readouterr().err
    losses = [summary_of(tmp_path / run)["final"]["held_out_loss"] for run in ("a", "b")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_debug_and_demo_presets_run(
    search: Search,
    tmp_path: Path,
    summary_of: Summary,
) -> None:
    """`search` stands for a folder of the test's own and for no drawing."""
    few = ["trainer.max_steps=1", "trainer.max_epochs=1", "data.batch_size=8", "space=s1"]
    quick = [*few, "data.held_out=8"]
    assert main(["search", "experiment=demo", *quick, "hydra.run.dir=a"]) == 0
    assert main(["search", "debug=fast", *quick, "hydra.run.dir=b"]) == 0
    assert search("experiment=null_arm", *few, "hydra.run.dir=c") == 0
    assert summary_of(tmp_path / "c")["config"]["objective"]["target"] == "permuted"


def test_the_record_has_the_names_that_scripts_rely_on(
    finished: Finished,
    summary_of: Summary,
) -> None:
    summary = summary_of(finished())
    assert sorted(summary) == sorted(SUMMARY_KEYS)
    assert summary["state"] == "finished"
    assert list(summary["final"]) == ["step", "held_out_loss", "weight_loss", "arch_loss"]
    assert summary["device"]["type"] == "cpu"
    assert summary["seed"] == 3
    assert summary["skipped_files"] == []
    assert summary["skip_counts"].keys() == summary["skip_chance"].keys() == {"normal", "reduce"}
    assert summary["mask_ratio"] == {"nominal": 0.5, "effective": 0.5}
    assert summary["yardsticks"].keys() == {"constant", "visible_mean"}
    best = min(summary["yardsticks"].values())
    assert summary["beats_yardsticks"] == (summary["final"]["held_out_loss"] < best)
    assert (summary["epochs"], summary["steps_per_epoch"], summary["readings"]) == (2, 6, 12)
    for name in ("wall_seconds", "images_per_second", "peak_memory_bytes"):
        assert summary[name] > 0
    folder = sorted(path.name for path in finished().iterdir())
    assert folder == [
        "checkpoints",
        "config.json",
        "genotype.json",
        "genotypes.jsonl",
        "metrics.csv",
        "run.lock",
        "summary.json",
        "train.log",
    ]
    saved = torch.load(finished() / "checkpoints" / "last.ckpt", weights_only=True)
    assert "relaxation.alphas.normal" in saved["state_dict"]


SUMMARY_KEYS = [
    *("name", "state", "verdict", "final", "skip_counts", "skip_chance", "entropy"),
    *("undetermined", "readings", "genotype", "seed", "device", "wall_seconds"),
    *(
        "images_per_second",
        "waiting_share",
        "peak_memory_bytes",
        "preflight",
        "backend",
        "yardsticks",
    ),
    *(
        "beats_yardsticks",
        "mask_ratio",
        "costs",
        "skipped_files",
        "data",
        "epochs",
        "steps_per_epoch",
        "config",
    ),
    *("config_hash", "overrides", "git", "versions"),
]


SKIPPING = """
from mae_nas.relaxations import DARTS

class Skipping(DARTS):
    def __init__(self, space, push: float) -> None:
        super().__init__(space)
        for alpha in self.alphas.values():
            alpha.data[:, 0] += push
"""


def test_collapse_stops_a_run_where_asked(
    search: Search,
    tmp_path: Path,
    capsys: Captured,
    summary_of: Summary,
) -> None:
    (tmp_path / "skipping.py").write_text(SKIPPING)
    pushed = ["space=s2", "relaxation=custom", "relaxation._target_=skipping.Skipping"]
    pushed += ["relaxation.push=5.0", "trainer.max_steps=5"]
    assert search(*pushed, "on_collapse=stop", "hydra.run.dir=a") == 3
    summary = summary_of(tmp_path / "a")
    assert (summary["verdict"], summary["state"]) == ("collapsed", "collapsed")
    assert summary["final"]["step"] == 3  # three readings in a row
    assert summary["skip_counts"]["normal"] == 8
    assert summary["skip_chance"]["normal"]["mean"] == pytest.approx(4, abs=0.1)
    capsys.readouterr()
    assert search(*pushed, "hydra.run.dir=b") == 0
    assert summary_of(tmp_path / "b")["verdict"] == "collapsed"
    assert summary_of(tmp_path / "b")["final"]["step"] == 5
    assert (
        "verdict collapsed at step 3: the normal cell keeps 8 skips in 8 edges (chance 4.0); of"
        in capsys.readouterr().out
    )


def test_a_loss_that_is_not_finite_fails_and_leaves_no_result(
    search: Search, tmp_path: Path, capsys: Captured
) -> None:
    assert search("hydra.run.dir=run", "search.weight_optimizer.lr=1e30") == 1
    out = capsys.readouterr()
    (line,) = [text for text in out.out.splitlines() if "NaN or infinite" in text]
    assert "(seed 3)" in line
    assert "Traceback" not in out.out + out.err
    # The very first step is bad: nothing of it may look like a result.
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert left <= {"config.json", "run.lock", "train.log", "metrics.csv", "summary.json"}
    record = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (record["state"], record["reason"]) == ("failed", line)
