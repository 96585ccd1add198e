import logging
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest

from mae_nas.runs.checkpoint import AtomicCheckpointIO
from mae_nas.runs.trainer import TrainerSettings, automatic_precision, reading_interval


@pytest.mark.parametrize(
    ("steps_per_epoch", "epochs"),
    [(390, 50), (121, 50), (120, 50), (119, 51), (15, 400), (7, 858), (1, 6000)],
)
def test_auto_epochs_are_fifty_or_as_many_as_six_thousand_steps_take(
    steps_per_epoch: int, epochs: int
) -> None:
    assert TrainerSettings().epochs(steps_per_epoch) == epochs
    assert TrainerSettings(max_epochs=3).epochs(steps_per_epoch) == 3


@pytest.mark.parametrize(
    ("total", "interval"), [(1, 1), (50, 1), (51, 2), (100, 2), (101, 3), (6000, 120), (19500, 390)]
)
def test_fifty_readings_in_a_run(total: int, interval: int) -> None:
    assert reading_interval(total) == interval


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_epochs": 0}, "max_epochs 0: must be at least 1"),
        ({"max_steps": 0}, "max_steps 0: must be at least 1"),
        ({"accumulate": 0}, "accumulate 0"),
        ({"log_every": -1}, "log_every -1"),
        ({"devices": 0}, "devices 0: must be at least 1"),
        ({"num_nodes": 0}, "num_nodes 0: must be at least 1"),
        ({"precision": "half"}, "precision 'half': must be one of auto, 32-true, 64-true, bf16-"),
        ({"accelerator": "mps"}, "accelerator mps: none is here; use auto or cpu"),
        ({"checkpoint_seconds": 0.0}, "checkpoint_seconds 0.0: must be positive"),
        ({"checkpoint_seconds": float("nan")}, "checkpoint_seconds nan: must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainerSettings(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("accelerator", "has_cuda", "has_bf16", "precision"),
    [
        ("auto", False, False, "32-true"),
        ("auto", True, True, "bf16-mixed"),
        ("cuda", True, False, "16-mixed"),
        ("cpu", True, True, "32-true"),
        ("mps", False, False, "32-true"),
        ("cuda", False, False, "32-true"),  # refused elsewhere
    ],
)
def test_automatic_precision_is_half_where_a_gpu_is(
    monkeypatch: pytest.MonkeyPatch,
    accelerator: str,
    has_cuda: bool,
    has_bf16: bool,
    precision: str,
) -> None:
    def answer(including_emulation: bool = True) -> bool:
        return has_bf16 or including_emulation

    monkeypatch.setattr("torch.cuda.is_available", lambda: has_cuda)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", answer)
    assert automatic_precision(accelerator) == precision


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "16-mixed"])
def test_a_cpu_computes_in_the_precision_asked_for(tmp_path: Path, precision: str) -> None:
    settings = TrainerSettings(accelerator="cpu", precision=precision)  # type: ignore[arg-type]
    trainer = settings.make(1, [], tmp_path)
    assert trainer.precision == precision
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    assert TrainerSettings(accelerator="cpu").make(1, [], tmp_path).precision == "32-true"


FOREIGN = """
import lightning.pytorch as pl

class Snoop(pl.Callback):
    pass

def factory():
    return [Snoop()]
"""


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What the run's log says; it does not propagate to the root once a run has begun."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("mae_nas")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    yield said
    log.setLevel(level)
    log.removeHandler(handler)


def test_callbacks_that_installed_packages_add_do_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    (tmp_path / "snooping.py").write_text(FOREIGN)
    installed = tmp_path / "snooping-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: snooping\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[lightning.pytorch.callbacks_factory]\nsnoop = snooping:factory\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import snooping  # type: ignore[import-not-found]

    theirs = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    names = [type(callback).__name__ for callback in theirs.callbacks]  # type: ignore[attr-defined]
    assert snooping.Snoop.__name__ in names  # the package really is picked up

    ours = [pl.Callback(), pl.Callback()]
    trainer = TrainerSettings(accelerator="cpu").make(5, ours, tmp_path)
    assert trainer.callbacks == ours  # type: ignore[attr-defined]
    assert messages == ["Not running callbacks that other installed packages add: Snoop"]


def test_trainer_runs_our_callbacks_alone_and_writes_atomically(
    tmp_path: Path, messages: list[str]
) -> None:
    ours = [pl.Callback()]
    trainer = TrainerSettings(accelerator="cpu", precision="64-true").make(5, ours, tmp_path)
    assert trainer.callbacks == ours  # type: ignore[attr-defined]
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    assert (trainer.max_steps, trainer.max_epochs) == (5, -1)
    assert trainer.precision == "64-true"
    assert trainer.loggers == []
    assert messages == []
    assert list(tmp_path.iterdir()) == []
