"""One search by the reference and by the fused cell: α side by side, and how far they part.

    python experiments/search_speed/trajectories.py FOLDER    # runs lie there, and go on if stopped

CIFAR-10's test images as files below MAE_NAS_DATA, one seed, float64 and float32. How far rounding
alone leads is told by the reference in float64 with two threads, whose sums have another order.
Writes trajectories.png beside this file and adds a record to trajectories.jsonl.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mae_nas.runs import canvas
from mae_nas.runs.records import describe_device, versions

HERE = Path(__file__).parent
# Fifty readings an epoch: of 10,000 images, so that some fall into a short search.
IMAGES = "data.root=${oc.env:MAE_NAS_DATA,data}/cifar10/test"
COMMON = [
    *("data=folder", IMAGES, "data.batch_size=8", "supernet.width=4", "supernet.depth=3"),
    *("trainer.max_epochs=1", "trainer.max_steps=120", "search.arch_optimizer.lr=3e-3"),
    *("trainer.accelerator=cpu", "trainer.preflight=false", "seed=0"),
]
PRECISIONS = ("64-true", "32-true")
WAYS = {
    "reference": ("efficiency=reference", "efficiency.threads=1"),
    "fused": ("efficiency=fused", "efficiency.threads=1"),
    "reference-2-threads": ("efficiency=reference", "efficiency.threads=2"),
}
# In float32 the two part at once: nothing to be told apart from.
RUNS = [*((p, w) for p in PRECISIONS for w in ("reference", "fused"))]
RUNS.append(("64-true", "reference-2-threads"))
FIRST_EDGE = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3")
FIRST_EDGE += ("sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")


def main() -> None:
    """Run the searches, draw and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    runs = {(p, w): folder / f"{w}-{p}" for p, w in RUNS}
    for (precision, way), run in runs.items():
        # The group first: its other keys are set after it.
        chosen = [*WAYS[way], f"trainer.precision={precision}", f"hydra.run.dir={run}"]
        command = [sys.executable, "-m", "mae_nas", "search", *chosen, *COMMON, "resume=auto"]
        subprocess.run(command, check=True)
    read = {key: trajectory(run) for key, run in runs.items()}
    others = [(p, w) for p, w in RUNS if w != "reference"]
    apart = {
        (p, w): np.abs(read[p, "reference"].weights - read[p, w].weights).max(axis=1)
        for p, w in others
    }
    draw(read, apart)
    summaries = {
        f"{w} {p}": json.loads((run / "summary.json").read_text()) for (p, w), run in runs.items()
    }
    record = {
        "overrides": COMMON,
        "ways": WAYS,
        "steps": read["64-true", "fused"].steps.tolist(),
        "largest_difference_of_a_mixing_weight": {
            f"{w} {p}": distance.tolist() for (p, w), distance in apart.items()
        },
        "genotype_of_the_reference": {
            f"{w} {p}": [
                a == b for a, b in zip(read[p, "reference"].cells, read[p, w].cells, strict=True)
            ]
            for p, w in others
        },
        "wall_seconds": {name: summary["wall_seconds"] for name, summary in summaries.items()},
        "git": {name: summary["git"] for name, summary in summaries.items()},
        "versions": versions(),
        "device": describe_device(torch.device("cpu")),
    }
    with (HERE / "trajectories.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


class Trajectory(NamedTuple):
    """Of T readings: steps (T), mixing weights (T, 2 · edges · candidates), cells."""

    steps: NDArray[np.int64]
    weights: NDArray[np.float64]
    cells: list[list[object]]


def trajectory(run: Path) -> Trajectory:
    """What a run's readings say."""
    rows = [json.loads(line) for line in (run / "genotypes.jsonl").read_text().splitlines()]
    kinds = ("normal", "reduce")
    scores = [np.concatenate([np.ravel(row["scores"][kind]) for kind in kinds]) for row in rows]
    cells = [[row[kind] for kind in kinds] for row in rows]
    return Trajectory(np.array([row["step"] for row in rows]), np.array(scores), cells)


@canvas.styled
def draw(
    read: dict[tuple[str, str], Trajectory], apart: dict[tuple[str, str], NDArray[np.float64]]
) -> None:
    """Weights of one edge in each precision, by both cells; and the largest difference of any."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    *panels, last = figure.subplots(1, 3)
    for panel, precision in zip(panels, PRECISIONS, strict=True):
        for way in ("reference", "fused"):
            steps, weights, _ = read[precision, way]
            style = {"lw": 3, "alpha": 0.3} if way == "reference" else {"lw": 1, "ls": "--"}
            for k, name in enumerate(FIRST_EDGE):
                label = canvas.human(name) if way == "fused" else None
                panel.plot(steps, weights[:, k], color=canvas.colour(name), label=label, **style)
        panel.set(title=f"{precision}: reference wide, fused dashed", xlabel="step")
    panels[0].set_ylabel("mixing weights, first edge of the normal cell")
    panels[0].legend(ncols=2, fontsize="small")
    for (precision, way), distance in apart.items():
        colour = f"C{PRECISIONS.index(precision)}"
        style = {"color": colour, "ls": "-" if way == "fused" else ":"}
        steps = read[precision, way].steps
        last.semilogy(steps, np.maximum(distance, 1e-18), label=f"{way}, {precision}", **style)
    last.set(title="largest difference from the reference", xlabel="step")
    last.legend(fontsize="small")
    canvas.save(figure, HERE / "trajectories.png")


if __name__ == "__main__":
    main()
