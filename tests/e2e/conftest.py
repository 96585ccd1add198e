import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_nas.cli.main import main
from mae_nas.runs.pictures import Pictures

TINY = [
    *("data=synthetic", "data.images=48", "data.side=8", "data.crop_padding=1"),
    *("mask.patch_size=2", "space=s1"),
    *("supernet.width=4", "supernet.depth=3", "data.batch_size=4", "trainer.max_epochs=2"),
    *("trainer.log_every=1", "trainer.accelerator=cpu", "trainer.preflight=false", "seed=3"),
]
"""Twelve steps in two epochs."""

UNDRAWN = """
import sys
import time
from mae_nas.runs.pictures import Pictures
Pictures.draw = lambda *_: None  # seconds that no test here is about
from mae_nas.cli.main import main
sys.exit(main(sys.argv[1:]))
"""

READINGS = ("genotypes.jsonl", "genotype.json", "readings.jsonl")
Search = Callable[..., int]


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Overrides of a search of twelve small steps, six an epoch."""
    return TINY


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Search:
    """`mae-nas search` in an empty folder, in this process, without drawing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # `main` adds the current folder
    monkeypatch.setattr(Pictures, "draw", lambda *_: None)
    return lambda *overrides: main(["search", *TINY, *overrides])


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of searches that nothing interrupted, each made once."""
    made: dict[tuple[str, ...], Path] = {}

    def make(*overrides: str) -> Path:
        if overrides not in made:
            folder = tmp_path_factory.mktemp("finished") / "run"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Pictures, "draw", lambda *_: None)
                patch.setattr(sys, "path", list(sys.path))
                assert main(["search", *TINY, *overrides, f"hydra.run.dir={folder}"]) == 0
            made[overrides] = folder
        return made[overrides]

    return make


@pytest.fixture(scope="session")
def summary_of() -> Callable[[Path], dict[str, Any]]:
    """The record of a run that has ended."""
    return lambda run: json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """All that lies in a folder, by name."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
            for path in sorted(folder.rglob("*"))
        }

    return read


@pytest.fixture
def assert_same() -> Callable[[Path, Path], None]:
    """Two runs ended bit for bit alike, timing columns apart."""

    def compare(one: Path, other: Path) -> None:
        saved = [
            torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other)
        ]
        for key in ("global_step", "state_dict", "optimizer_states", "MixedPrecision"):
            assert_identical(saved[0].get(key), saved[1].get(key), key)
        assert metrics(one) == metrics(other)
        names = [name for name in READINGS if (one / name).exists()]
        assert names
        for name in names:
            assert (one / name).read_text() == (other / name).read_text(), name
        records = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
        for key in records[0]:
            if key == "final" or key.startswith("test_"):
                assert records[0][key] == records[1][key], key

    return compare


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["seconds"], row["waiting_share"]
    return rows


def assert_identical(one: object, other: object, where: str) -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_identical(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_identical(a, b, f"{where}.{i}")
    else:
        assert one == other, where


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """Wait until a living process has written a file, or so many lines of it."""

    def wait(process: subprocess.Popen[str], path: Path, lines: int = 0) -> None:
        deadline = time.monotonic() + 200
        while not path.exists() or path.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"no progress of {path}"
            time.sleep(0.002)

    return wait


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """`mae-nas search`, or another command, in a process of its own, to be stopped or killed."""

    # A module, so that a launcher of ranks can start it again.
    (tmp_path / "undrawn.py").write_text(UNDRAWN)

    def run(
        *overrides: str,
        most_kilobytes: int | None = None,
        command: Sequence[str] = ("search", *TINY),
    ) -> subprocess.Popen[str]:
        limit = "unlimited" if most_kilobytes is None else str(most_kilobytes)
        return subprocess.Popen(
            [
                "bash",
                "-c",
                f'ulimit -f {limit}; exec "$@"',
                "-",
                sys.executable,
                "-m",
                "undrawn",
                *command,
                *overrides,
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a process group, as a terminal or a scheduler makes
        )

    return run
