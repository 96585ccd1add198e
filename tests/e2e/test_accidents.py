"""What goes wrong on the way is one line and an exit code, and nothing is left half-written."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mae_nas.genotype import read_genotype
from mae_nas.runs.listing import look
from mae_nas.runs.pictures import Pictures

Captured = pytest.CaptureFixture[str]
Search = Callable[..., int]
Start = Callable[..., subprocess.Popen[str]]
WaitFor = Callable[..., None]

PLANTED = """
import os, signal, time, torch
from mae_nas.data import Synthetic
from mae_nas.decoders import HierarchicalDecoder

class Planted(HierarchicalDecoder):
    def __init__(self, features, channels, most=999, number=0, at=-1, bad=-1, reading=False,
                 held=0, wait=(0, 0), wrong=-1, times=1):
        super().__init__(features, channels)
        self.most, self.number, self.at, self.bad, self.reading = most, number, at, bad, reading
        self.held, self.wait, self.wrong, self.times = held, wait, wrong, times
        self.calls = 0

    def branches(self, features):
        if len(features[0]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        torch.ones(len(features[0]) * self.held // 4).sum()  # bytes an image, for a moment
        time.sleep(self.wait[0] + self.wait[1] * len(features[0]))
        self.calls += self.training != self.reading
        if self.calls == self.at and self.training != self.reading:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
        if self.calls == self.wrong:
            raise TypeError("a mistake in the code")
        factor = torch.nan if self.calls == self.bad else 1
        return [factor * branch for branch in super().branches(features)]

class Stopped(Synthetic):
    def load(self, on_progress=None):
        os.kill(os.getpid(), signal.SIGUSR1)
        return super().load(on_progress)
"""
DECODER = ["decoder=custom", "decoder._target_=planted.Planted", "hydra.run.dir=run"]
DRAW = Pictures.draw
FIRST = ["trainer.preflight=true"]


@pytest.fixture
def planted(search: Search, tmp_path: Path) -> Search:
    (tmp_path / "planted.py").write_text(PLANTED)
    sys.modules.pop("planted", None)
    return lambda *overrides: search(*DECODER, *overrides)


def stored(run: Path) -> dict[str, object]:
    return json.loads((run / "config.json").read_text())["config"]["trainer"]


# Preflight and memory ---------------------------------------------------------------------------


def test_preflight_says_what_a_search_takes_and_changes_nothing_of_it(
    search: Search, finished: Callable[..., Path], assert_same: Search, tmp_path: Path
) -> None:
    assert search(*FIRST, "hydra.run.dir=run", "trainer.max_steps=5") == 0
    assert search(*FIRST, "hydra.run.dir=run", "resume=auto") == 0
    assert_same(tmp_path / "run", finished())
    assert json.loads((tmp_path / "run/summary.json").read_text())["preflight"]["images"] == 4
    said = (tmp_path / "run/train.log").read_text()
    assert said.count(" s per step, ") == 2
    assert " in all" in said


def test_too_little_memory_is_one_line_that_says_what_should_fit(
    planted: Search, tmp_path: Path, capsys: Captured
) -> None:
    assert planted(*FIRST, "decoder.most=2") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "4 images at a time: data.batch_size=2 or trainer.accumulate=2 (the same" in line
    assert "should fit, an estimate: 2 at a time take" in line
    assert not (tmp_path / "run").exists()
    assert planted("decoder.most=2", "trainer.accumulate=2", "trainer.max_steps=2") == 0


def test_too_little_memory_for_one_image_says_so(
    planted: Search, tmp_path: Path, capsys: Captured
) -> None:
    assert planted(*FIRST, "trainer.fit_batch=true", "decoder.most=0") == 1
    said = "out of memory with one image at a time: lower supernet.width than 4"
    assert capsys.readouterr().err == f"mae-nas: {said}\n"
    assert not (tmp_path / "run").exists()


def test_memory_that_runs_out_later_is_one_line_too(planted: Search, capsys: Captured) -> None:
    assert planted("decoder.most=3") == 1
    *_, line = capsys.readouterr().out.splitlines()
    assert "with 4 images at a time: data.batch_size=2 or trainer.accumulate=2 (the same" in line
    assert line.endswith(" may fit")


@pytest.mark.slow
def test_fit_batch_is_the_search_of_the_accumulation_that_fits(
    planted: Search,
    assert_same: Search,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Captured,
) -> None:
    fitted = [*FIRST, "trainer.fit_batch=true", "decoder.most=2"]
    with monkeypatch.context() as patch:
        patch.setattr(Pictures, "draw", DRAW)  # of more images than fit at once
        assert planted(*fitted, "trainer.max_steps=5") == 0
    assert (tmp_path / "run/plots/reconstructions.png").exists()
    assert "trainer.accumulate=2: the batch in parts of 2 images" in capsys.readouterr().out
    assert stored(tmp_path / "run")["accumulate"] == 2
    assert planted(*fitted, "resume=auto") == 0  # though accumulate is 1 on the command line
    assert planted("decoder.most=2", "trainer.accumulate=2", "hydra.run.dir=other") == 0
    assert_same(tmp_path / "run", tmp_path / "other")


def test_fit_batch_is_refused_where_the_batch_must_stay_whole(
    search: Search, capsys: Captured
) -> None:
    assert search("objective.target=permuted", "trainer.fit_batch=true", *FIRST) == 2
    assert "trainer.fit_batch=false" in capsys.readouterr().err


@pytest.fixture
def small_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose memory is what this process takes and 240 MB beyond, of which 80 % are usable."""
    real = os.sysconf
    size = real("SC_PAGE_SIZE")
    lines = Path("/proc/self/status").read_text().splitlines()
    now = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) << 10
    pages = (now * 5 // 4 + (240 << 20)) // size
    monkeypatch.setattr(os, "sysconf", lambda n: pages if n == "SC_PHYS_PAGES" else real(n))


# 4 MB an image: of 192, sixty-four need 256 and thirty-two 128.
HEAVY = [*FIRST, "data.images=160", "data.batch_size=64", f"decoder.held={4 << 20}"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a step is tried")
@pytest.mark.usefixtures("small_computer")
@pytest.mark.slow
def test_what_should_not_fit_on_a_cpu_is_not_tried(
    planted: Search, tmp_path: Path, capsys: Captured
) -> None:
    assert planted(*HEAVY) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "with 64 images at a time: data.batch_size=32 or trainer.accumulate=2 (" in line
    assert not (tmp_path / "run").exists()
    assert planted(*HEAVY, "trainer.fit_batch=true", "trainer.max_steps=1") == 0
    assert "trainer.accumulate=2: the batch in parts of 32 images" in capsys.readouterr().out
    cost = json.loads((tmp_path / "run/summary.json").read_text())["preflight"]
    assert (cost["images"], cost["is_estimate"]) == (32, False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a step is tried")
def test_a_slow_step_is_not_tried_but_estimated(
    planted: Search, tmp_path: Path, capsys: Captured
) -> None:
    # Each of two levels waits 0.1 s, and 20 ms an image: 10 s for 256, and it is not tried.
    waits = ["decoder.wait=[0.1,0.02]", "trainer.max_steps=1"]
    assert planted(*FIRST, "data.images=700", "data.batch_size=256", *waits) == 0
    assert "in all, estimated from few images\n" in capsys.readouterr().out
    cost = json.loads((tmp_path / "run/summary.json").read_text())["preflight"]
    assert (cost["images"], cost["is_estimate"]) == (256, True)


LIMITED = """
import resource, sys
import mae_nas.cli.search
from mae_nas.cli.main import main
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
# One image takes less than 1 GB, libraries that are loaded later included, and eight take 4 GB.
resource.setrlimit(resource.RLIMIT_AS, (size + (2 << 30), -1))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_computer_without_memory_is_told_in_one_line(tiny: list[str], tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_AS)[1] == resource.RLIM_INFINITY
    large = [
        "data.images=40",
        "data.side=128",
        "data.batch_size=8",
        "supernet.stem=cifar",
        "supernet.width=64",
    ]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "search", *tiny, *large, *FIRST, "hydra.run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert "out of memory with 8 images at a time: data.batch_size=" in line
    assert not (tmp_path / "run").exists()


def test_a_signal_while_steps_are_tried_leaves_nothing(
    planted: Search, tmp_path: Path, capsys: Captured
) -> None:
    stopping = [f"decoder.number={int(signal.SIGTERM)}", "decoder.at=1"]
    assert planted(*FIRST, *stopping) == 75
    assert capsys.readouterr().err == "mae-nas: stopped at once; nothing is left of it\n"
    assert not (tmp_path / "run").exists()


# A loss that is not finite ----------------------------------------------------------------------


def test_a_loss_that_is_not_finite_at_some_step_names_it(
    planted: Search, tmp_path: Path, capsys: Captured
) -> None:
    # Two calls a step: the fourteenth is the weights' of the seventh, after the reading at six.
    assert planted("decoder.bad=14") == 1
    *_, line = capsys.readouterr().out.splitlines()
    assert "NaN or infinite at step 6 (seed 3); the last checkpoint is from before it" in line
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()
    assert json.loads((tmp_path / "run/genotype.json").read_text())["step"] == 6


# A mistake in the code --------------------------------------------------------------------------


def test_an_unexpected_exception_is_in_the_record_and_goes_on(
    planted: Search, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match="a mistake in the code"):
        planted("decoder.wrong=3")
    run = look(tmp_path / "run")
    assert (run.state, run.reason) == ("failed", "TypeError: a mistake in the code")


# The record of an earlier process ---------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_goes_on_and_is_killed_is_not_what_it_was(
    search: Search, start: Start, wait_for: WaitFor, tmp_path: Path
) -> None:
    assert search("trainer.max_steps=2", "hydra.run.dir=run") == 0
    assert look(tmp_path / "run").state == "finished"
    goes_on = ["trainer.max_steps=9999", "resume=auto"]
    process = start(*goes_on, "hydra.run.dir=run")
    wait_for(process, tmp_path / "run" / "metrics.csv", 4)
    process.kill()
    process.communicate()
    assert look(tmp_path / "run").state == "stopped"


def test_a_run_that_is_refused_keeps_its_record(search: Search, tmp_path: Path) -> None:
    assert search("trainer.max_steps=2", "hydra.run.dir=run") == 0
    record = (tmp_path / "run/summary.json").read_bytes()
    (tmp_path / "run/checkpoints/last.ckpt").write_bytes(b"cut short")
    assert search("trainer.max_steps=4", "hydra.run.dir=run", "resume=auto") == 2
    assert (tmp_path / "run/summary.json").read_bytes() == record


# Signals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", [["decoder.at=5"], ["decoder.at=2", "decoder.reading=true"]])
@pytest.mark.parametrize("name", ["USR1", "USR2"])
def test_what_schedulers_warn_with_ends_a_search_for_requeue(
    planted: Search, tmp_path: Path, name: str, when: list[str]
) -> None:
    assert planted(f"decoder.number={signal.Signals[f'SIG{name}']:d}", *when) == 75
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["state"], summary["final"]["step"]) == ("stopped", 3)
    read_genotype(str(tmp_path / "run"))
    assert list((tmp_path / "run").rglob("*.tmp-*")) == []


def test_a_sweeps_job_that_is_stopped_goes_on_with_the_sweep(
    planted: Search, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("MAE_NAS_IN_SWEEP", "1")
    assert planted(f"decoder.number={signal.SIGTERM:d}", "decoder.at=5") == 75
    *_, line = capsys.readouterr().out.splitlines()
    assert line == "to go on   the sweep's command again"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_a_signal_in_preflight_ends_at_once_and_leaves_nothing(
    planted: Search, tmp_path: Path, capsys: Captured, number: signal.Signals, code: int
) -> None:
    assert planted(*FIRST, f"decoder.number={number:d}", "decoder.at=3") == code
    assert capsys.readouterr().err == "mae-nas: stopped at once; nothing is left of it\n"
    assert not (tmp_path / "run").exists()


def test_a_second_signal_promises_no_checkpoint_that_is_not_there(
    planted: Search, tmp_path: Path, capsys: Captured
) -> None:
    twice = [f"decoder.number={signal.SIGINT:d}", "decoder.at=1", "decoder.times=2"]
    assert planted(*twice) == 130
    assert not (tmp_path / "run/checkpoints/last.ckpt").exists()
    assert "stopped at once\n" in capsys.readouterr().out


def test_a_signal_while_images_are_read_ends_at_once_and_leaves_nothing(
    planted: Search, tmp_path: Path, capsys: Captured
) -> None:
    data = ["data=custom", "data._target_=planted.Stopped", "+data.images=48", "+data.side=8"]
    assert planted(*data) == 75, capsys.readouterr()
    assert capsys.readouterr().err == "mae-nas: stopped at once; nothing is left of it\n"
    assert not (tmp_path / "run").exists()


# Loader processes -------------------------------------------------------------------------------

HOST = ["efficiency.resident=false", "efficiency.workers=2"]


@pytest.mark.slow
def test_spawned_loader_workers_change_no_bit(
    search: Search,
    finished: Callable[..., Path],
    assert_same: Search,
    tmp_path: Path,
) -> None:
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert search("hydra.run.dir=run", *HOST) == 0
    finally:
        multiprocessing.set_start_method(method, force=True)
    assert_same(tmp_path / "run", finished())


@pytest.mark.slow
def test_a_killed_loader_worker_ends_a_search_in_one_line(
    start: Start, wait_for: WaitFor, tmp_path: Path
) -> None:
    process = start("trainer.max_epochs=999", *HOST, "hydra.run.dir=run")
    wait_for(process, tmp_path / "run" / "metrics.csv", 4)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    said, _ = process.communicate(timeout=60)  # until no process holds the pipe
    assert process.returncode == 1, said
    assert "Traceback" not in said
    *_, line = said.splitlines()
    assert line.startswith("a loader process has died, perhaps for want of memory: DataLoader")
