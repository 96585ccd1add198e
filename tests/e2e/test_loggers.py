"""What loggers were told, read back from the files that they leave."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from mae_nas.genotype import read_genotype
from mae_nas.runs import loggers
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.loggers import WandbSettings, start_log
from mae_nas.runs.pictures import Pictures
from mae_nas.search import SearchReading

Search = Callable[..., int]
Captured = pytest.CaptureFixture[str]
PICTURES = ("alpha", "cells", "losses", "reconstructions")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No key of the user's, and a wandb that reads its environment anew."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_GROUP", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    loggers._obstacle.cache_clear()
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def drawn(search: Search, monkeypatch: pytest.MonkeyPatch) -> Search:
    """A search whose pictures are a plane of one grey, of the last reading's step."""

    def draw(pictures: Pictures, readings: Sequence[SearchReading]) -> None:
        pictures.folder.plots.mkdir(exist_ok=True)
        grey = np.full((5, 7, 3), readings[-1].step, np.uint8)
        for name in PICTURES:
            Image.fromarray(grey).save(pictures.folder.plots / f"{name}.png")

    monkeypatch.setattr(Pictures, "draw", draw)
    return search


# Weights & Biases ---------------------------------------------------------------------------------


def records(path: Path) -> Iterator[Record]:
    """The records of a .wandb file: LevelDB's log format, behind a header of seven bytes."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield Record.FromString(whole)
            whole = b""


def values(items: Any) -> dict[str, Any]:  # noqa: ANN401 - repeated messages of several types
    """Keys, nested ones joined by dots, to what their JSON holds."""
    return {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}


def parts(run: Path) -> list[list[Record]]:
    """Records of each process of the run, in order."""
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    return [list(records(file)) for file in files]


def history(part: list[Record]) -> list[dict[str, Any]]:
    return [values(r.history.item) for r in part if r.WhichOneof("record_type") == "history"]


def begun(part: list[Record]) -> Any:  # noqa: ANN401 - a message
    (run,) = [r.run for r in part if r.WhichOneof("record_type") == "run"]
    return run


def test_an_offline_run_of_wandb_holds_all_that_is_promised(
    drawn: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "my-sweep")
    here = ["logger=wandb", "hydra.run.dir='sweep x/mask.ratio=0.5,seed=3'"]
    run = tmp_path / "sweep x" / "mask.ratio=0.5,seed=3"
    assert drawn(*here, "trainer.max_steps=3") == 0
    said = capsys.readouterr()
    (line,) = [line for line in (said.out + said.err).splitlines() if "wandb" in line]
    assert line.endswith("wandb sync 'sweep x/mask.ratio=0.5,seed=3'/wandb/offline-run-*")
    (part,) = parts(run)
    start = begun(part)
    assert start.run_id == json.loads((run / "wandb.json").read_text())["id"]
    assert (start.display_name, start.run_group) == ("mask.ratio=0.5,seed=3", "my-sweep")
    assert (start.project, start.job_type) == ("mae-nas", "search")
    assert values(start.config.update)["mask"]["ratio"] == 0.5
    assert ("*", "step") in {(r.metric.glob_name, r.metric.step_metric) for r in part}
    rows = history(part)
    assert [row["step"] for row in rows if "weight_loss" in row] == [1, 2, 3]
    told = [json.loads(line) for line in (run / "genotypes.jsonl").read_text().splitlines()]
    kept = [row for row in rows if "held_out_loss" in row]
    assert [row["held_out_loss"] for row in kept] == [r["held_out_loss"] for r in told]
    assert kept[-1]["skips_normal"] == told[-1]["skips"]["normal"]
    assert kept[-1]["chance_skips_normal"] == pytest.approx(3.6, abs=0.05)  # of 8 edges in S1
    assert kept[-1]["entropy_reduce"] == told[-1]["entropy"]["reduce"]
    check_media(run, part, told[-1])
    check_summary(part, json.loads((run / "summary.json").read_text()))


def check_summary(part: list[Record], record: dict[str, Any]) -> None:
    """The columns of wandb's table of runs are those of summary.json."""
    columns: dict[str, Any] = {}
    for told in part:
        columns |= values(told.summary.update)
    for name in ("state", "verdict", "wall_seconds", "beats_yardsticks"):
        assert columns[name] == record[name]
    assert columns["held_out_loss"] == record["final"]["held_out_loss"]
    for kind in ("normal", "reduce"):
        assert columns[f"skips_{kind}"] == record["skip_counts"][kind]
        assert columns[f"chance_skips_{kind}"] == record["skip_chance"][kind]["mean"]
        assert columns[f"entropy_{kind}"] == record["entropy"][kind]


def check_media(run: Path, part: list[Record], last: dict[str, Any]) -> None:
    """Pictures, histograms, the table and the artifact are those of the last reading."""
    (files,) = run.glob("wandb/offline-run-*/files")
    row = [row for row in history(part) if "cells.path" in row][-1]
    assert row["step"] == last["step"]
    for name in PICTURES:
        pixels = np.asarray(Image.open(files / row[f"{name}.path"]))
        assert (pixels == last["step"]).all()
        assert pixels.shape == (5, 7, 3)
    for kind in ("normal", "reduce"):
        weights = np.ravel(last["scores"][kind])
        counts, edges = row[f"alpha_{kind}.values"], row[f"alpha_{kind}.bins"]
        assert counts == np.histogram(weights, bins=np.array(edges))[0].tolist()
        assert sum(counts) == len(weights)
    table = json.loads((files / row["genotype.path"]).read_text())
    assert table["columns"] == ["kind", "node", "input", "operation", "weight"]
    listed = [(kind, node, source, name) for kind, node, source, name, _ in table["data"]]
    assert listed == [
        (kind, edge["target"], edge["source"], edge["primitive"])
        for kind in ("normal", "reduce")
        for edge in last[kind]["edges"]
    ]
    for kind in ("normal", "reduce"):
        weights = [weight for k, *_, weight in table["data"] if k == kind]
        assert sum(weights) == pytest.approx(last["cell_scores"][kind])
    (artifact,) = [r.artifact for r in part if r.artifact.type == "genotype"]
    (entry,) = artifact.manifest.contents
    assert read_genotype(entry.local_path) == read_genotype(str(run))


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_a_group(tmp_path: Path, tiny: list[str]) -> None:
    folder = tmp_path / "ratios"
    command = [*("search", "-m", *tiny, "trainer.max_steps=2", "seed=0,1", "logger=wandb")]
    done = subprocess.run(
        [sys.executable, "-m", "mae_nas", *command, f"hydra.sweep.dir={folder}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    runs = {name: begun(parts(folder / name)[0]) for name in ("seed=0", "seed=1")}
    assert {run.run_group for run in runs.values()} == {"ratios"}
    assert [run.display_name for run in runs.values()] == list(runs)
    assert len({run.run_id for run in runs.values()}) == 2


def test_wandb_is_told_the_exit_code(tmp_path: Path) -> None:
    start_log(WandbSettings(), RunFolder(tmp_path), {}, 0, []).close({}, 75)
    (part,) = parts(tmp_path)
    assert [r.exit.exit_code for r in part if r.WhichOneof("record_type") == "exit"] == [75]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "no key for http://127.0.0.1:9; run `wandb login` first"),
        ({"WANDB_API_KEY": "0" * 40}, "http://127.0.0.1:9 cannot be used (.*refused"),
    ],
    ids=["no key", "no network"],
)
def test_wandb_online_is_refused_at_once_where_it_cannot_work(
    search: Search,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    environment: dict[str, str],
    said: str,
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert search("logger=wandb", "logger.mode=online", "hydra.run.dir=run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mae-nas: logger: mode online: ")
    assert all(part in line for part in said.split(".*"))
    assert "logger.mode=offline" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_killed_run_of_wandb_goes_on_under_its_id_and_loses_no_row(
    search: Search,
    start: Callable[..., subprocess.Popen[str]],
    wait_for: Callable[..., None],
    tmp_path: Path,
) -> None:
    here = ["logger=wandb", "hydra.run.dir=run", "resume=auto", "trainer.checkpoint_seconds=0.01"]
    run = tmp_path / "run"
    process = start(*here, "trainer.max_epochs=50")
    wait_for(process, run / "checkpoints" / "last.ckpt")
    process.kill()
    process.communicate()
    time.sleep(2)  # wandb's own process ends by itself
    assert search(*here, "trainer.max_epochs=50", "trainer.max_steps=40") == 0
    identity = json.loads((run / "wandb.json").read_text())["id"]
    *_, second = parts(run)
    assert begun(second).run_id == identity
    # The killed process left its last rows, or all, in memory: they are told again.
    kept = {(row["step"], "held_out_loss" in row) for part in parts(run) for row in history(part)}
    assert {step for step, is_reading in kept if not is_reading} == set(range(1, 41))
    assert {step for step, is_reading in kept if is_reading} == {*range(6, 41, 6), 40}
    # One that ended in order lost nothing.
    assert search(*here, "trainer.max_epochs=50", "trainer.max_steps=42") == 0
    third = parts(run)[-1]
    assert begun(third).run_id == identity
    assert {row["step"] for row in history(third)} == {41, 42}


# TensorBoard --------------------------------------------------------------------------------------


def test_tensorboards_event_file_holds_scalars_pictures_and_histograms(
    drawn: Search, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert drawn("logger=tensorboard", "hydra.run.dir=run", "trainer.max_steps=2") == 0
    events = EventAccumulator(str(run / "tensorboard"), {"images": 0, "histograms": 0})
    events.Reload()
    assert [point.step for point in events.Scalars("weight_loss")] == [1, 2]
    told = [json.loads(line) for line in (run / "genotypes.jsonl").read_text().splitlines()]
    losses = {point.step: point.value for point in events.Scalars("held_out_loss")}
    assert losses == pytest.approx({r["step"]: r["held_out_loss"] for r in told})
    assert set(events.Tags()["images"]) == set(PICTURES)
    last = events.Images("reconstructions")[-1]
    assert (last.step, last.width, last.height) == (2, 7, 5)
    counted = events.Histograms("alpha_normal")[-1].histogram_value
    assert counted.num == np.size(told[-1]["scores"]["normal"])
    assert counted.sum == pytest.approx(np.sum(told[-1]["scores"]["normal"]))
    assert {"config/text_summary", "genotype/text_summary", "verdict/text_summary"} <= set(
        events.Tags()["tensors"]
    )


# A logger of the user's own -----------------------------------------------------------------------

OWN = """
import json
from pathlib import Path
from mae_nas.runs.loggers import LoggerSettings, RunLog

class Mine(LoggerSettings):
    def __init__(self, file: str, most: int = 1000) -> None:
        self.file, self.most = Path(file), most

    def start(self, folder, config, step, earlier):
        if self.most == 0:
            raise RuntimeError("no room\\nat all")
        return MyLog(self.file, self.most)

class MyLog(RunLog):
    def __init__(self, file: Path, most: int) -> None:
        self.file, self.most, self.told = file, most, []

    def row(self, values) -> None:
        if len(self.told) == self.most:
            raise OSError("full")
        self.told.append(["row", values["step"]])

    def drawn(self, reading, edges, plots) -> None:
        self.told.append(["drawn", reading.step])

    def close(self, record, code) -> None:
        self.told.append(["close", record.get("verdict"), code])
        self.file.write_text(json.dumps(self.told))
"""


@pytest.fixture
def own(search: Search, tmp_path: Path) -> Search:
    (tmp_path / "own_logger.py").write_text(OWN)
    named = ["logger=custom", "logger._target_=own_logger.Mine", "logger.file=told.json"]
    return lambda *more: search(*named, "hydra.run.dir=run", *more)


def test_a_logger_that_fails_on_the_way_does_not_stop_the_search(
    own: Search, tmp_path: Path, capsys: Captured
) -> None:
    assert own("trainer.max_steps=2", "logger.most=4") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "MyLog" in line]
    assert line == "MyLog failed (full); the run goes on without it"
    # A row of the step, one of its reading, the pictures: until there is no room.
    told = [["row", 1], ["row", 1], ["drawn", 1], ["row", 2], ["close", None, 1]]
    assert json.loads((tmp_path / "told.json").read_text()) == told


def test_a_logger_that_cannot_start_refuses_the_run_in_one_line(
    own: Search, tmp_path: Path, capsys: Captured
) -> None:
    assert own("logger.most=0") == 2
    assert capsys.readouterr().err == "mae-nas: logger: no room\n"
    assert not (tmp_path / "run").exists()
