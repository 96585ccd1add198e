"""One search by the reference and by the fused cell: α side by side, and how far they part.

    python experiments/search_speed/trajectories.py FOLDER    # runs lie there, and go on if stopped

CIFAR-10's test images as files below MAE_NAS_DATA, one seed, float64 and float32. Writes
trajectories.png beside this file and adds a record to trajectories.jsonl.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mae_nas.genotype import read_genotype
from mae_nas.runs import canvas
from mae_nas.runs.records import describe_device, git_state, versions

HERE = Path(__file__).parent
# Fifty readings an epoch: of 10,000 images, so that some fall into a short search.
IMAGES = "data.root=${oc.env:MAE_NAS_DATA,data}/cifar10/test"
COMMON = [
    *("data=folder", IMAGES, "data.batch_size=8", "supernet.width=4", "supernet.depth=3"),
    *("trainer.max_epochs=1", "trainer.max_steps=200", "search.arch_optimizer.lr=3e-3"),
    *("trainer.accelerator=cpu", "efficiency.threads=1", "trainer.preflight=false", "seed=0"),
]
PRECISIONS, CELLS = ("64-true", "32-true"), ("reference", "fused")
FIRST_EDGE = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3")
FIRST_EDGE += ("sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
Trajectory = tuple[NDArray[np.int64], NDArray[np.float64]]


def main() -> None:
    """Run the four searches, draw and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    runs = {(p, c): folder / f"{c}-{p}" for p in PRECISIONS for c in CELLS}
    for (precision, cell), run in runs.items():
        chosen = [f"trainer.precision={precision}", f"efficiency={cell}", f"hydra.run.dir={run}"]
        # The group first: its other keys are set after it.
        command = [sys.executable, "-m", "mae_nas", "search", *chosen, *COMMON, "resume=auto"]
        subprocess.run(command, check=True)
    read = {key: trajectory(run) for key, run in runs.items()}
    apart = {
        p: np.abs(read[p, "reference"][1] - read[p, "fused"][1]).max(axis=1) for p in PRECISIONS
    }
    draw(read, apart)
    genotypes = {key: read_genotype(str(run)) for key, run in runs.items()}
    record = {
        "overrides": COMMON,
        "steps": read["64-true", "fused"][0].tolist(),
        "largest_difference_of_a_mixing_weight": {p: d.tolist() for p, d in apart.items()},
        "same_genotype": {
            p: genotypes[p, "reference"] == genotypes[p, "fused"] for p in PRECISIONS
        },
        "wall_seconds": {
            f"{c} {p}": json.loads((run / "summary.json").read_text())["wall_seconds"]
            for (p, c), run in runs.items()
        },
        "git": git_state(),
        "versions": versions(),
        "device": describe_device(torch.device("cpu")),
    }
    with (HERE / "trajectories.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def trajectory(run: Path) -> Trajectory:
    """Steps (T), and mixing weights (T, 2 · edges · candidates)."""
    rows = [json.loads(line) for line in (run / "genotypes.jsonl").read_text().splitlines()]
    scores = [[np.ravel(row["scores"][kind]) for kind in ("normal", "reduce")] for row in rows]
    return np.array([row["step"] for row in rows]), np.array([np.concatenate(s) for s in scores])


@canvas.styled
def draw(read: dict[tuple[str, str], Trajectory], apart: dict[str, NDArray[np.float64]]) -> None:
    """Weights of one edge in each precision, by both cells; and the largest difference of any."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    *panels, last = figure.subplots(1, 3)
    for panel, precision in zip(panels, PRECISIONS, strict=True):
        for cell in CELLS:
            steps, weights = read[precision, cell]
            style = {"lw": 3, "alpha": 0.3} if cell == "reference" else {"lw": 1, "ls": "--"}
            for k, name in enumerate(FIRST_EDGE):
                label = canvas.human(name) if cell == "fused" else None
                panel.plot(steps, weights[:, k], color=canvas.colour(name), label=label, **style)
        panel.set(title=f"{precision}: reference wide, fused dashed", xlabel="step")
    panels[0].set_ylabel("mixing weights, first edge of the normal cell")
    panels[0].legend(ncols=2)
    for precision, distance in apart.items():
        last.semilogy(read[precision, "fused"][0], np.maximum(distance, 1e-18), label=precision)
    last.set(title="largest difference of any mixing weight", xlabel="step")
    last.legend()
    canvas.save(figure, HERE / "trajectories.png")


if __name__ == "__main__":
    main()
