import itertools
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from mae_nas.batch import Batch
from mae_nas.cli import codes, drive
from mae_nas.cli.search import SearchRun
from mae_nas.objectives import Encode, Objective
from mae_nas.runs import callbacks
from mae_nas.runs.callbacks import (
    Checkpoints,
    Clock,
    Gallery,
    Metrics,
    Readings,
    StopOnSignal,
)
from mae_nas.runs.checkpoint import FORMAT, read_checkpoint
from mae_nas.runs.loggers import RunLog
from mae_nas.runs.tables import MetricsTable
from mae_nas.search import SearchModule, SearchReading, take_reading
from mae_nas.search.collapse import Verdict
from mae_nas.stepping import NonFiniteLossError
from mae_nas.stopping import Stopper

Prepared = Callable[..., SearchRun]


class FakeTime:
    """A clock that only goes on when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(callbacks, "time", fake)
    return fake


class Each(pl.Callback):
    """Calls `action(step)` after every step, before the callbacks behind it."""

    def __init__(self, action: Callable[[int], None]) -> None:
        self.action = action

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        self.action(trainer.global_step)


def make_readings(
    run: SearchRun,
    interval: int = 1,
    last_step: int = 12,
    verdicts: list[Verdict] | None = None,
    stop_on_collapse: bool = False,
) -> Readings:
    planned = itertools.chain(verdicts or [], itertools.repeat("ok"))

    def take(earlier: list[SearchReading]) -> SearchReading:
        held_out = run.data.held_out_batches()
        reading = take_reading(run.module, run.parts.space, held_out, earlier)
        return replace(reading, verdict=next(planned))  # type: ignore[arg-type]

    return Readings(
        SearchReading,
        run.folder.genotypes,
        take,
        interval,
        last_step,
        last=run.folder.genotype,
        ends=lambda reading: stop_on_collapse and reading.verdict == "collapsed",
    )


def fit(
    run: SearchRun, steps: int, beside: list[pl.Callback], checkpoint: Path | None = None
) -> None:
    trainer = run.settings.make(steps, beside, run.folder.path)
    trainer.fit(run.module, datamodule=run.data, ckpt_path=checkpoint, weights_only=True)


def steps_of(run: SearchRun) -> list[int]:
    return [json.loads(row)["step"] for row in run.folder.genotypes.read_text().splitlines()]


# Clock ------------------------------------------------------------------------------------------


def test_clock_counts_the_run_over_several_processes(fake_time: FakeTime) -> None:
    clock = Clock()
    clock.on_train_start()
    for _ in range(4):
        fake_time.now += 1.0  # waiting for data
        clock.on_train_batch_start()
        fake_time.now += 2.0  # the step
        clock.on_train_batch_end()
        fake_time.now += 1.0  # other callbacks
        clock.mark()
    assert clock.total == 16.0
    assert clock.waiting_share == pytest.approx(1 / 3)
    assert clock.seconds_per_step == 3.0
    second = Clock()
    second.load_state_dict(clock.state_dict())
    second.on_train_start()
    fake_time.now += 5.0
    assert second.total == 21.0
    assert second.here == 5.0


# Metrics ----------------------------------------------------------------------------------------


def test_metrics_write_every_so_many_steps_the_steps_own_values(prepared: Prepared) -> None:
    run = prepared("search.warmup_epochs=1")
    losses = {}
    look = Each(lambda step: losses.update({step: float(run.module.values["weight_loss"])}))
    fit(run, 9, [Clock(), look, Metrics(run.folder, 4, Clock(), RunLog())])
    rows = MetricsTable(run.folder.metrics).rows()
    assert [row["step"] for row in rows] == ["1", "4", "8"]
    assert [float(row["weight_loss"]) for row in rows] == [losses[1], losses[4], losses[8]]
    assert [row["arch_loss"] == "" for row in rows] == [True, True, False]
    assert float(rows[2]["epoch"]) == 8 / 6
    assert float(rows[1]["learning_rate"]) == 0.025
    assert float(rows[2]["learning_rate"]) == pytest.approx(0.013)
    for name in ("grad_norm_weights", "grad_norm_alpha_reduce", "rms_F3", "entropy_normal"):
        assert float(rows[2][name]) > 0


def test_an_epochs_last_row_has_the_learning_rate_that_it_was_taken_with(
    prepared: Prepared,
) -> None:
    run = prepared()
    fit(run, 7, [Clock(), Metrics(run.folder, 1, Clock(), RunLog())])
    rates = [float(row["learning_rate"]) for row in MetricsTable(run.folder.metrics).rows()]
    assert rates[:6] == [0.025] * 6
    assert rates[6] < 0.025


def test_metrics_behind_the_checkpoint_are_cut(prepared: Prepared) -> None:
    run = prepared()
    table = MetricsTable(run.folder.metrics)
    for step in (1, 2):
        table.append({"step": step, "loss": 1.0})
    fit(run, 1, [Metrics(run.folder, 100, Clock(), RunLog())])  # a new start: from step 0
    assert [row["step"] for row in table.rows()] == ["1"]
    assert "loss" not in table.rows()[0]


# Readings ---------------------------------------------------------------------------------------


def test_readings_come_at_the_interval_and_at_the_end(prepared: Prepared) -> None:
    run = prepared()
    readings = make_readings(run, interval=3, last_step=7)
    fit(run, 7, [readings])
    assert steps_of(run) == [3, 6, 7]
    assert readings.is_complete
    written = json.loads(run.folder.genotype.read_text())
    assert written["step"] == 7
    last = readings.readings[-1]
    assert SearchReading.from_dict(written) == last
    assert written.pop("chance_normal") == pytest.approx(3.6, abs=0.05)  # of 8 edges in S1
    assert SearchReading.from_dict(written) == replace(last, chance_normal=None)  # an older one
    one = replace(last, skips={"normal": 1})
    assert "keeps 1 skip in 8 edges (chance 3.6); of cells" in one.in_words()


def test_a_continued_search_drops_readings_that_it_will_not_repeat(prepared: Prepared) -> None:
    run = prepared()
    first = make_readings(run, interval=2, last_step=5)
    kept = Checkpoints(run.folder, 1e9, first, 0, {})
    fit(run, 5, [first, kept])
    assert steps_of(run) == [2, 4, 5]
    again = prepared()
    second = make_readings(again, interval=2, last_step=8)
    fit(again, 8, [second], run.folder.checkpoint)
    assert steps_of(again) == [2, 4, 6, 8]
    assert second.readings[:2] == first.readings[:2]


def test_collapse_ends_the_search_where_asked(prepared: Prepared) -> None:
    for stop, steps in ((True, [1, 2]), (False, [1, 2, 3])):
        run = prepared()
        run.folder.genotypes.unlink(missing_ok=True)
        readings = make_readings(
            run, last_step=3, verdicts=["warning", "collapsed"], stop_on_collapse=stop
        )
        fit(run, 3, [readings])
        assert steps_of(run) == steps
        assert readings.has_ended_run == stop
        assert readings.is_complete != stop


def test_drawing_takes_at_most_a_twentieth_of_the_time(
    prepared: Prepared, fake_time: FakeTime
) -> None:
    run, drawn = prepared(), []

    def draw(readings: list[SearchReading]) -> None:
        drawn.append(readings[-1].step)
        fake_time.now += 0.5

    def pass_a_second(_: int) -> None:
        fake_time.now += 3.0

    readings, clock = make_readings(run, last_step=11), Clock()
    gallery = Gallery(draw, readings, clock)
    fit(run, 11, [clock, Each(pass_a_second), readings, gallery])
    # Drawn at step 1 in half a second, so not again within ten; the last is for `settle`.
    assert drawn == [1, 5, 9]
    gallery.settle()
    assert drawn == [1, 5, 9, 11]
    gallery.settle()
    assert drawn == [1, 5, 9, 11]


def test_settle_draws_a_run_that_was_killed_before_its_record(prepared: Prepared) -> None:
    run, drawn = prepared(), []
    fit(run, 2, [make_readings(run, last_step=2)])
    late = make_readings(run, last_step=2)
    Gallery(lambda readings: drawn.append(len(readings)), late, Clock()).settle()
    assert drawn == [2]
    assert late.is_complete


# Checkpoints ------------------------------------------------------------------------------------


def test_checkpoints_come_after_readings_and_every_so_many_seconds(
    prepared: Prepared, fake_time: FakeTime
) -> None:
    run, saved = prepared(), []

    def pass_time(_: int) -> None:
        fake_time.now += 4.0

    def look(step: int) -> None:
        if run.folder.checkpoint.exists():
            found = read_checkpoint(run.folder.checkpoint)["global_step"]
            saved.append((step, found))

    readings = make_readings(run, interval=6, last_step=9)
    kept = Checkpoints(run.folder, 10.0, readings, 0, {"config_hash": "c"})
    fit(run, 9, [Each(pass_time), readings, kept, Each(look)])
    # 12 seconds after the start at step 3; a reading at 6; 12 seconds later, which is the end too.
    assert saved == [(3, 3), (4, 3), (5, 3), (6, 6), (7, 6), (8, 6), (9, 9)]
    found = read_checkpoint(run.folder.checkpoint)
    assert (found["format"], found["config_hash"]) == (FORMAT, "c")
    assert found["state_dict"].keys() == run.module.state_dict().keys()


class Explosive(Objective):
    """The objective it wraps, spoilt once by `spoil`."""

    def __init__(self, inner: Objective, spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.stages = inner.stages
        self.spoil = spoil
        self.is_armed = False

    def forward(self, encode: Encode, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, values = self.inner(encode, batch)
        return (self.spoil(loss) if self.is_armed and self.training else loss), values


class Overflow(torch.autograd.Function):
    """Identity, whose gradient overflows."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return gradient * torch.inf


def not_a_number(loss: torch.Tensor) -> torch.Tensor:
    return loss * torch.nan


def overflowing(loss: torch.Tensor) -> torch.Tensor:
    return Overflow.apply(loss)  # type: ignore[return-value]


@pytest.mark.parametrize("spoil", [not_a_number, overflowing])
@pytest.mark.parametrize(("interval", "warmup"), [(1, 0), (100, 0), (1, 9)])
def test_a_bad_checkpoint_never_replaces_a_good_one(
    prepared: Prepared,
    spoil: Callable[[torch.Tensor], torch.Tensor],
    interval: int,
    warmup: int,
) -> None:
    run = prepared(f"search.warmup_epochs={warmup}")
    inner = run.module.objective
    assert isinstance(inner, Objective)
    objective = Explosive(inner, spoil)
    module = SearchModule(
        run.module.relaxation,
        run.module.supernet,  # type: ignore[arg-type]
        objective,
        run.module.settings,
        epochs=2,
        steps_per_epoch=6,
    )
    run = replace(run, module=module)
    readings = make_readings(run, interval=interval, last_step=12)

    def arm(step: int) -> None:
        objective.is_armed = step == 3

    kept = Checkpoints(run.folder, 1e-9, readings, 41, {})
    with pytest.raises(NonFiniteLossError, match=r"at step 3 \(seed 41\)"):
        fit(run, 12, [Each(arm), readings, kept])
    saved = read_checkpoint(run.folder.checkpoint)
    assert saved["global_step"] == 3
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


# Signals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "code"), [(signal.SIGTERM, codes.REQUEUE), (signal.SIGINT, codes.INTERRUPTED)]
)
def test_a_second_signal_ends_a_search_at_once_with_its_own_code(
    prepared: Prepared, second: signal.Signals, code: int
) -> None:
    run, seen, stopper = prepared(), [], Stopper()

    def interrupt(step: int) -> None:
        seen.append(step)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), second)
        seen.append(-1)  # not reached

    trainer = run.settings.make(9, [StopOnSignal(stopper), Each(interrupt)], run.folder.path)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert drive.fit(trainer, run, None, stopper) == code
    assert seen == [1]
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
        signal.signal(number, handler)  # Lightning leaves Ctrl-C ignored
