import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_nas.cli.main import main
from mae_nas.genotype import Genotype, read_genotype
from mae_nas.spaces import S1

Search = Callable[..., int]
Captured = pytest.CaptureFixture[str]
LONG = ["trainer.max_epochs=9", "trainer.max_steps=24"]  # a reading at every second step


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


# From images to a drawing -------------------------------------------------------------------------


def test_search_ends_with_a_drawn_genotype_and_a_record(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
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


def test_debug_and_demo_presets_run(search: Search, tmp_path: Path) -> None:
    """`search` stands for a folder of the test's own and for no drawing."""
    few = ["trainer.max_steps=1", "trainer.max_epochs=1", "data.batch_size=8", "space=s1"]
    quick = [*few, "data.held_out=8"]
    assert main(["search", "experiment=demo", *quick, "hydra.run.dir=a"]) == 0
    assert main(["search", "debug=fast", *quick, "hydra.run.dir=b"]) == 0
    assert search("experiment=null_arm", *few, "hydra.run.dir=c") == 0
    assert summary_of(tmp_path / "c")["config"]["objective"]["target"] == "permuted"


# Going on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "options"),
    [
        (4, []),
        (6, []),
        (7, []),
        pytest.param(4, ["trainer.precision=64-true"], marks=pytest.mark.slow),
        pytest.param(4, ["trainer.precision=bf16-mixed"], marks=pytest.mark.slow),
        (7, ["trainer.precision=16-mixed"]),  # with another scale than it began with
        (4, ["search.second_order=true", "trainer.accumulate=2"]),
    ],
)
def test_a_run_goes_on_from_any_kind_of_step(
    search: Search,
    finished: Callable[..., Path],
    assert_same: Search,
    tmp_path: Path,
    stop: int,
    options: list[str],
) -> None:
    """In mid-epoch, at an epoch's last batch (6) and at its first (7); by `trainer.max_steps`."""
    here = ["hydra.run.dir=run", *options]
    assert search(*here, f"trainer.max_steps={stop}") == 0
    assert summary_of(tmp_path / "run")["final"]["step"] == stop
    assert search(*here, "resume=auto") == 0
    assert_same(tmp_path / "run", finished(*options))


def test_a_run_keeps_the_precision_that_it_began_with(
    search: Search, tmp_path: Path, capsys: Captured
) -> None:
    here = ["hydra.run.dir=run", "trainer.max_steps=1"]
    assert search(*here) == 0
    assert "; precision 32-true" in capsys.readouterr().out
    assert summary_of(tmp_path / "run")["config"]["trainer"]["precision"] == "32-true"
    assert search(*here, "resume=auto", "trainer.precision=bf16-mixed") == 2
    line = 'trainer.precision: the run has "32-true", this command line "bf16-mixed"'
    assert line in capsys.readouterr().err
    assert search("resume=run", "trainer.max_steps=1") == 0


def test_a_stop_between_readings_leaves_no_trace(
    search: Search, finished: Callable[..., Path], assert_same: Search, tmp_path: Path
) -> None:
    here = [*LONG, "hydra.run.dir=run"]
    assert search(*here, "trainer.max_steps=5") == 0
    rows = (tmp_path / "run" / "genotypes.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4, 5]
    assert search(*here, "trainer.max_steps=13", "resume=auto") == 0
    assert search(*here, "resume=auto") == 0
    assert_same(tmp_path / "run", finished(*LONG))


def test_a_run_goes_on_by_path_from_an_older_checkpoint(
    search: Search, finished: Callable[..., Path], assert_same: Search, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert search("hydra.run.dir=run", "trainer.max_steps=5") == 0
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "five.ckpt")
    assert search("hydra.run.dir=run", "trainer.max_steps=9", "resume=auto") == 0
    capped = ["resume=run/checkpoints/five.ckpt", "trainer.max_steps=null"]
    assert main(["search", *capped]) == 0
    assert_same(run, finished())


def test_a_run_beyond_the_steps_asked_for_says_so(
    search: Search, tmp_path: Path, capsys: Captured
) -> None:
    run = tmp_path / "run"
    here = ["hydra.run.dir=run", "resume=auto"]
    assert search(*here, "trainer.max_steps=4") == 0
    for file in (run / "genotype.json", run / "genotypes.jsonl", run / "summary.json"):
        file.unlink()  # as if killed before its first reading
    capsys.readouterr()
    assert search(*here, "trainer.max_steps=2") == 2
    line = "mae-nas: trainer.max_steps: the run is at step 4 already; raise it\n"
    assert capsys.readouterr().err == line


def test_a_finished_run_is_not_run_twice(
    search: Search, finished: Callable[..., Path], capsys: Captured
) -> None:
    run = finished()
    before = snapshot(run)
    assert search(f"hydra.run.dir={run}", "resume=auto") == 0
    assert "is finished: nothing to do" in capsys.readouterr().out
    assert main(["search", f"resume={run}"]) == 0
    assert {name for name in snapshot(run) if snapshot(run)[name] != before.get(name)} <= {
        "run.lock"
    }


def test_a_run_killed_before_its_record_gets_it_when_started_again(
    search: Search, finished: Callable[..., Path], assert_same: Search, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished(), run)
    record = summary_of(run)
    (run / "summary.json").unlink()
    assert search("hydra.run.dir=run", "resume=auto") == 0
    assert_same(run, finished())
    assert summary_of(run).keys() == record.keys()


def test_the_record_has_the_names_that_scripts_rely_on(finished: Callable[..., Path]) -> None:
    summary = summary_of(finished())
    assert list(summary) == SUMMARY_KEYS
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


def test_a_full_disk_fails_in_one_line_and_leaves_nothing_half_written(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("hydra.run.dir=run", most_kilobytes=40)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    run = tmp_path / "run"
    (line,) = [text for text in said.splitlines() if "could not be written" in text]
    assert "last.ckpt" in line
    assert list(run.rglob("*.tmp-*")) == []
    assert not (run / "checkpoints" / "last.ckpt").exists()
    S1().check(read_genotype(str(run)))


def test_a_second_run_never_enters_the_folder_of_a_first(
    search: Search, finished: Callable[..., Path], capsys: Captured
) -> None:
    run = finished()
    before = snapshot(run)
    assert search(f"hydra.run.dir={run}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "already holds a run; continue it with resume=auto" in line
    assert snapshot(run) == before


def test_a_changed_configuration_is_refused_naming_the_keys(
    search: Search, finished: Callable[..., Path], capsys: Captured
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


def test_resume_auto_finds_the_newest_unfinished_run(
    search: Search, finished: Callable[..., Path], assert_same: Search, tmp_path: Path
) -> None:
    assert search("trainer.max_steps=3", "name=mine") == 0
    (run,) = (tmp_path / "runs" / "mine").iterdir()
    assert search("name=mine", "resume=auto") == 0
    assert [path.name for path in (tmp_path / "runs" / "mine").iterdir()] == [run.name]
    assert_same(run, finished())


# Stopping ---------------------------------------------------------------------------------------


def test_a_search_outlives_whoever_reads_its_lines(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("hydra.run.dir=run")
    assert process.stdout
    assert any("epochs of" in line for line in process.stdout)  # the last one before training
    process.stdout.close()  # as a `tee` that dies
    assert process.wait(timeout=120) == 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert "step 12/12" in log
    assert "summary    run/summary.json" in log


def test_signals_end_a_run_cleanly_and_it_goes_on_bit_identically(
    search: Search,
    start: Callable[..., subprocess.Popen[str]],
    wait_for: Callable[..., None],
    finished: Callable[..., Path],
    assert_same: Search,
    tmp_path: Path,
) -> None:
    run, here = tmp_path / "run", [*LONG, "hydra.run.dir=run", "resume=auto"]
    here += ["efficiency.resident=false", "efficiency.workers=2"]
    steps = [0]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):
        process = start(*here)
        wait_for(process, run / "metrics.csv", steps[-1] + 4)
        os.killpg(process.pid, number)  # as Ctrl-C and schedulers do: loader workers get it too
        said, _ = process.communicate(timeout=60)
        assert process.returncode == code, said
        assert "Traceback" not in said
        assert f"resume=auto hydra.run.dir={Path('run')}" in said
        S1().check(read_genotype(str(run)))
        summary = summary_of(run)
        assert summary["state"] == "stopped"
        steps.append(summary["final"]["step"])
        assert steps[-2] + 3 <= steps[-1] < 24
    assert search(*here) == 0
    assert summary_of(run)["state"] == "finished"
    assert_same(run, finished(*LONG))


SKIPPING = """
from mae_nas.relaxations import DARTS

class Skipping(DARTS):
    def __init__(self, space, push: float) -> None:
        super().__init__(space)
        for alpha in self.alphas.values():
            alpha.data[:, 0] += push
"""


def test_collapse_stops_a_run_where_asked(search: Search, tmp_path: Path, capsys: Captured) -> None:
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


# Bad input --------------------------------------------------------------------------------------


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


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused_in_one_line(
    search: Search, finished: Callable[..., Path], tmp_path: Path, capsys: Captured
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
