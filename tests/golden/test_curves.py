"""Losses and α of short searches in float64 on a CPU, to eight digits: results may not drift.

After a change that is meant to change results: `MAE_NAS_REGENERATE=1 pytest tests/golden`, and the
reason goes into the commit that carries the new numbers.
"""

import json
import os
from pathlib import Path

import lightning.pytorch as pl
import pytest
from rich.console import Console

from mae_nas.cli.compose import compose
from mae_nas.cli.search import prepare
from mae_nas.runs.folder import RunFolder
from mae_nas.search import SearchModule

FILE = Path(__file__).with_name("curves.json")
STEPS = 24
COMMON = [
    *("data=synthetic", "data.images=90", "data.side=8", "data.crop_padding=1", "seed=7"),
    *("mask.patch_size=2", "supernet.width=2", "supernet.depth=3"),
    *("data.batch_size=4", "trainer.max_epochs=3", "trainer.precision=64-true"),
    *("trainer.accelerator=cpu", "search.arch_optimizer.lr=0.01"),
]
CASES = {
    "hierarchical dense": ["space=s0"],
    "hierarchical sparse": ["space=s1", "mask.mode=sparse"],
    "hierarchical dense second order": ["space=s1", "search.second_order=true"],
    "simmim dense": ["space=s1", "decoder=simmim"],
    "simmim sparse": ["space=s1", "decoder=simmim", "mask.mode=sparse"],
    "unet dense": ["space=s1", "decoder=unet", "decoder.width=8"],
    "unet sparse": ["space=s1", "decoder=unet", "decoder.width=8", "mask.mode=sparse"],
}
# Every decoder and both masks are among the others.
SLOW = (
    "hierarchical sparse",
    "hierarchical dense second order",
    "simmim dense",
    "unet sparse",
    "unet dense",
)
Curves = dict[str, list[str]]


class Recorder(pl.Callback):
    """Both losses and the whole of α after every step, in hexadecimal: no digit is lost."""

    def __init__(self) -> None:
        self.curves: Curves = {}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002 - Lightning's signature
        pl_module: pl.LightningModule,
        *_: object,
    ) -> None:
        assert isinstance(pl_module, SearchModule)
        row = {name: float(pl_module.values[name]) for name in ("weight_loss", "arch_loss")}
        for kind, alpha in pl_module.relaxation.alphas.items():
            # A sum of squares of distances from a ramp tells any two α apart that matter.
            ramp = alpha.new_tensor(range(alpha.numel())).view_as(alpha) / alpha.numel()
            row[f"alpha_{kind}"] = float((alpha.detach() - ramp).square().sum())
        for name, value in row.items():
            self.curves.setdefault(name, []).append(value.hex())


def search(overrides: list[str], folder: Path) -> Curves:
    """The curves of a short search, and α at its end."""
    config = compose([*COMMON, *overrides]).config
    run = prepare(config, RunFolder(folder), Console(quiet=True))
    recorder = Recorder()
    trainer = run.settings.make(STEPS, [recorder], folder)
    trainer.fit(run.module, datamodule=run.data)
    for kind, alpha in run.module.relaxation.alphas.items():
        values = alpha.detach().flatten().tolist()
        recorder.curves[f"final_{kind}"] = [value.hex() for value in values]
    return recorder.curves


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in CASES]
)
def test_curves_are_as_committed(case: str, tmp_path: Path) -> None:
    curves = search(CASES[case], tmp_path)
    committed: dict[str, Curves] = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("MAE_NAS_REGENERATE") == "1":
        FILE.write_text(json.dumps({**committed, case: curves}, indent=1) + "\n")
        return
    expected = committed[case]
    assert curves.keys() == expected.keys()
    assert len(expected["weight_loss"]) == STEPS
    for name, values in expected.items():
        found = [float.fromhex(value) for value in curves[name]]
        assert found == pytest.approx([float.fromhex(v) for v in values], rel=1e-8, abs=1e-8), name


def test_every_case_is_committed_and_moves() -> None:
    committed: dict[str, Curves] = json.loads(FILE.read_text())
    assert committed.keys() == CASES.keys()
    for curves in committed.values():
        for name in ("weight_loss", "arch_loss", "alpha_normal", "alpha_reduce"):
            assert len(set(curves[name])) == STEPS, name
