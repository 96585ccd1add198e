"""The fused cell in whole searches: the reference's results, checkpoints that both continue."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mae_nas.supernet.depthwise import cpp

Search = Callable[..., int]
Finished = Callable[..., Path]
Start = Callable[..., subprocess.Popen[str]]
EXACT = ["trainer.precision=64-true", "supernet.width=8", "search.arch_optimizer.lr=0.01"]


def alphas(run: Path) -> list[torch.Tensor]:
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return [saved[f"relaxation.alphas.{kind}"] for kind in ("normal", "reduce")]


def assert_close(one: Path, other: Path) -> None:
    for ours, theirs in zip(alphas(one), alphas(other), strict=True):
        assert (ours - theirs).abs().max() < 1e-8
    cells = [json.loads((run / "genotype.json").read_text()) for run in (one, other)]
    assert all(cells[0][kind] == cells[1][kind] for kind in ("normal", "reduce"))


SOME = [
    ["space=s4", "decoder=simmim"],
    ["space=s1", "mask.mode=sparse", "mask.patch_size=4", "decoder=unet", "decoder.width=8"],
    ["space=s2", "mask.mode=sparse", "mask.patch_size=2"],
]
MORE = [
    ["space=s3", "search.second_order=true"],
    ["space=s0", "supernet.width=4"],
    ["space=s0", "efficiency.recompute=true"],
    ["space=s0", "efficiency.cpp=false"],
    ["space=s2", "trainer.accumulate=2"],
]


@pytest.mark.parametrize(
    "extra", [*SOME, *(pytest.param(more, marks=pytest.mark.slow) for more in MORE)]
)
def test_twenty_steps_give_the_references_alphas_and_genotype(
    finished: Finished, extra: list[str]
) -> None:
    long = [*EXACT, "trainer.max_epochs=4", "trainer.max_steps=20"]
    fused = finished(*long, *extra)
    reference = [o for o in extra if not o.startswith("efficiency.")]
    assert_close(fused, finished(*long, *reference, "efficiency=reference"))
    used = json.loads((fused / "summary.json").read_text())["backend"]
    is_compiled = "efficiency.cpp=false" not in extra and cpp.library() is not None
    assert used == ("fused-cpp" if is_compiled else "fused-torch")


@pytest.mark.parametrize(
    "order",
    [("reference", "fused"), pytest.param(("fused", "reference"), marks=pytest.mark.slow)],
)
def test_a_search_goes_on_with_the_other_cell(
    search: Search,
    finished: Finished,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    order: tuple[str, str],
) -> None:
    first, then = (f"efficiency={name}" for name in order)
    whole = [*EXACT, "trainer.max_steps=6"]
    assert search(*EXACT, first, "hydra.run.dir=run", "trainer.max_steps=3") == 0
    capsys.readouterr()
    assert search(*whole, then, "hydra.run.dir=run", "resume=auto") == 0
    assert f" cell up to step 3, by the {order[1]} one from there" in capsys.readouterr().out
    assert_close(tmp_path / "run", finished(*whole, "efficiency=reference"))


def test_recomputing_is_refused_where_nothing_is_fused(
    search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search("efficiency=reference", "efficiency.recompute=true") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mae-nas: efficiency: recompute: is of the fused cell")


def test_without_a_compiler_a_search_works_and_says_so_once(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nowhere")
    process = start(*EXACT, "trainer.max_steps=2", "hydra.run.dir=run")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    record = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert record["backend"] == "fused-torch"
    assert said.count("depthwise convolutions by torch") == 1, said
