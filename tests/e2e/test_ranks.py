"""Several ranks compute the search that one would, and none is left alone."""

import csv
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from mae_nas.genotype import read_genotype
from mae_nas.supernet.depthwise import cpp

Search = Callable[..., int]
Start = Callable[..., subprocess.Popen[str]]
WaitFor = Callable[..., None]
EXACT = ["trainer.precision=64-true", "trainer.sync_batchnorm=true", "supernet.width=8"]
LONG = "trainer.max_epochs=9"  # 54 steps, not 12
TWO = "trainer.devices=2"


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def saved(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_close(run: Path, other: Path, limit: float = 1e-10) -> None:
    one, two = saved(run), saved(other)
    for name in one:
        assert (one[name] - two[name]).abs().max() < limit, name
    assert read_genotype(str(run)) == read_genotype(str(other))


@pytest.mark.parametrize(
    ("devices", "extra"),
    [
        (2, ["efficiency.resident=false", "efficiency.workers=1", "mask.mode=sparse"]),
        pytest.param(2, [LONG], marks=pytest.mark.slow),
        pytest.param(2, [LONG, "mask.mode=sparse"], marks=pytest.mark.slow),
        pytest.param(2, ["efficiency.resident=false"], marks=pytest.mark.slow),
        pytest.param(2, ["decoder=unet", "trainer.accumulate=2"], marks=pytest.mark.slow),
        pytest.param(2, ["search.second_order=true"], marks=pytest.mark.slow),
        pytest.param(4, [LONG], marks=pytest.mark.slow),
    ],
)
def test_ranks_compute_the_search_of_one(
    finished: Callable[..., Path], start: Start, tmp_path: Path, devices: int, extra: list[str]
) -> None:
    # How images reach the devices is no matter; all else is the search's.
    alone = [override for override in extra if not override.startswith("efficiency")]
    process = start(*EXACT, *extra, f"trainer.devices={devices}", "hydra.run.dir=run")
    code, said = end(process)
    assert code == 0, said
    assert "Warning" not in said  # DDP's, of gradients that it has to copy
    assert_close(tmp_path / "run", finished(*EXACT, *alone))
    record = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert record["backend"] == ("fused-torch" if cpp.library() is None else "fused-cpp")


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 9])  # in the first step, and amid the only epoch
def test_ranks_that_differ_stop_the_search_naming_one(
    start: Start, tmp_path: Path, call: int
) -> None:
    (tmp_path / "apart.py").write_text(APART)
    process = start(
        *("relaxation=custom", "relaxation._target_=apart.Apart", f"relaxation.call={call}"),
        *(TWO, "trainer.max_epochs=1", "hydra.run.dir=run"),
    )
    code, said = end(process)
    assert code != 0
    assert "α of rank 1 differs from that of rank 0" in said
    assert "Traceback" not in said


APART = """
import os
from mae_nas.relaxations import DARTS

class Apart(DARTS):
    def __init__(self, space, call: int) -> None:
        super().__init__(space)
        self.left = call

    def mixture(self):
        self.left -= 1
        if self.left == 0 and os.environ.get("LOCAL_RANK") == "1":
            self.alphas["normal"].data += 1e-6
        return super().mixture()
"""


@pytest.mark.slow
def test_ranks_skip_a_step_together(start: Start, tmp_path: Path) -> None:
    """α is compared at every reading, here after every step, and overflows on one rank."""
    (tmp_path / "overflow.py").write_text(OVERFLOW)
    process = start(
        *("relaxation=custom", "relaxation._target_=overflow.Overflow", TWO, "hydra.run.dir=run"),
        *("trainer.precision=16-mixed", "trainer.max_epochs=4"),
    )
    code, said = end(process)
    assert code == 0, said
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    scales = [float(row["loss_scale"]) for row in rows]
    assert scales[14] == scales[13] / 2
    skipped = [row["grad_norm_alpha_normal"] in ("inf", "") for row in rows]
    assert skipped[13]
    assert sum(skipped[:13]) <= 2  # a scaler begins high: a step of its own may overflow


OVERFLOW = """
import os
from mae_nas.relaxations import DARTS

class Overflow(DARTS):
    def __init__(self, space) -> None:
        super().__init__(space)
        self.steps = 0
        self.alphas["normal"].register_hook(self.spoil)

    def spoil(self, gradient):
        self.steps += 1
        is_bad = self.steps == 14 and os.environ.get("LOCAL_RANK") == "1"
        return gradient * float("inf") if is_bad else gradient
"""


@pytest.mark.slow
def test_a_search_goes_on_with_other_ranks(
    search: Search, start: Start, finished: Callable[..., Path], tmp_path: Path
) -> None:
    here = [*EXACT, LONG, "hydra.run.dir=run", "resume=auto"]
    assert end(start(*here, TWO, "trainer.max_steps=20"))[0] == 0
    assert search(*here, "trainer.max_steps=40") == 0
    assert end(start(*here, TWO))[0] == 0
    assert_close(tmp_path / "run", finished(*EXACT, LONG))


@pytest.mark.slow
def test_two_nodes_start_and_continue_a_search(
    start: Start,
    finished: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Two nodes on one computer; precision is left to them, as by default."""
    exact = "trainer.sync_batchnorm=true"
    here = [exact, "trainer.num_nodes=2", "hydra.run.dir=run", "resume=auto"]
    for steps in (6, 12, 12):  # the third has nothing to do
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))
        nodes = []
        for rank in "01":
            monkeypatch.setenv("NODE_RANK", rank)
            nodes.append(start(*here, f"trainer.max_steps={steps}"))
        assert [end(node)[0] for node in nodes] == [0, 0]
    for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name)
    assert_close(tmp_path / "run", finished(exact), 1e-4)


@pytest.mark.slow
def test_ranks_killed_and_started_again_end_as_if_nothing_had_happened(
    start: Start,
    wait_for: WaitFor,
    assert_same: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    # Statistics of each rank's own: the harder case.
    there = ["trainer.max_epochs=3", TWO]
    assert end(start(*there, "hydra.run.dir=whole"))[0] == 0
    here = [*there, "hydra.run.dir=run", "resume=auto", "trainer.checkpoint_seconds=0.05"]
    process = start(*here)
    wait_for(process, tmp_path / "run" / "metrics.csv", 6)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert end(start(*here))[0] == 0
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_ends_all_ranks_for_requeue(
    start: Start, wait_for: WaitFor, tmp_path: Path
) -> None:
    process = start("trainer.max_epochs=99", TWO, "hydra.run.dir=run")
    wait_for(process, tmp_path / "run" / "metrics.csv", 4)
    process.send_signal(signal.SIGTERM)  # to the first alone: the others are told
    code, said = end(process)
    assert code == 75, said
    assert "Traceback" not in said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["state"] == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["first", "second"])
def test_no_rank_outlives_another(
    start: Start, wait_for: WaitFor, tmp_path: Path, dies: str
) -> None:
    process = start("trainer.max_epochs=99", TWO, "hydra.run.dir=run")
    wait_for(process, tmp_path / "run" / "metrics.csv", 4)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (second,) = [int(child) for child in children if b"undrawn" in cmdline(int(child))]
    os.kill(process.pid if dies == "first" else second, signal.SIGKILL)
    code, said = end(process)  # ends when the last process has closed its end of the pipe
    assert code == (-signal.SIGKILL if dies == "first" else 1)
    assert "another rank has ended, and with it the search" in said
    assert "Traceback" not in said
    assert not Path(f"/proc/{second}").exists() or b"undrawn" not in cmdline(second)


@pytest.mark.slow
def test_a_rank_that_dies_before_it_meets_the_others_is_told(start: Start, tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    code, said = end(
        start("decoder=custom", "decoder._target_=dying.Dying", TWO, "hydra.run.dir=run")
    )
    *_, line = said.splitlines()
    assert line.startswith("another rank has ended, and with it the search: process ")
    assert (code, line.endswith(" with 7")) == (1, True)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["state"], summary["reason"]) == ("failed", line)


DYING = """
import os
from mae_nas.decoders import HierarchicalDecoder

class Dying(HierarchicalDecoder):
    def __init__(self, features, channels):
        if os.environ.get("LOCAL_RANK") == "1":
            os._exit(7)
        super().__init__(features, channels)
"""


def cmdline(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""
