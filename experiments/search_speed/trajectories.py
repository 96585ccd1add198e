"""One search by the reference and by the fused cell: α side by side, and how far they part.

    python experiments/search_speed/trajectories.py FOLDER [64-true|32-true]

Runs lie in FOLDER, and go on if stopped; a precision alone has a picture of its own.

CIFAR-10's test images as files below MAE_NAS_DATA, one seed, float64 and float32. How far rounding
alone leads is told by the reference in float64 with two threads, whose sums have another order;
what Adam adds to it, by float32 searches whose α steps by its gradient itself.
Writes trajectories.png beside this file and adds a record to trajectories.jsonl.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mae_nas.network.latency import describe_device
from mae_nas.runs import canvas
from mae_nas.runs.records import versions

HERE = Path(__file__).parent
# Fifty readings an epoch: of 10,000 images, so that some fall into a short search.
IMAGES = "data.root=${oc.env:MAE_NAS_DATA,data}/cifar10/test"
COMMON = [
    *("data=folder", IMAGES, "data.batch_size=8", "supernet.width=4", "supernet.depth=3"),
    *("trainer.max_epochs=1", "trainer.max_steps=120", "search.arch_optimizer.lr=3e-3"),
    *("trainer.accelerator=cpu", "trainer.preflight=false", "seed=0"),
]
PRECISIONS = ("64-true", "32-true")
# At a rate by which α moves about as far in the first steps as by Adam.
BY_GRADIENT = ("search.arch_optimizer._target_=torch.optim.SGD", "search.arch_optimizer.lr=0.5")
BY_GRADIENT += ("~search.arch_optimizer.betas",)
WAYS = {
    "reference": ("efficiency=reference", "efficiency.threads=1"),
    "fused": ("efficiency=fused", "efficiency.threads=1"),
    "reference-2-threads": ("efficiency=reference", "efficiency.threads=2"),
    "reference-sgd": ("efficiency=reference", "efficiency.threads=1", *BY_GRADIENT),
    "fused-sgd": ("efficiency=fused", "efficiency.threads=1", *BY_GRADIENT),
}
# By precision: what is compared, and with what. In float32 the two part at once: nothing to be told
# apart from by threads.
PAIRS = {
    ("64-true", "fused"): "reference",
    ("64-true", "reference-2-threads"): "reference",
    ("32-true", "fused"): "reference",
    ("32-true", "fused-sgd"): "reference-sgd",
}
STYLES = {"fused": "-", "reference-2-threads": ":", "fused-sgd": "--"}
FIRST_EDGE = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3")
FIRST_EDGE += ("sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")


def main() -> None:
    """Run the searches, draw and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("precision", nargs="?", choices=PRECISIONS)
    given = parser.parse_args()
    precisions = [given.precision] if given.precision else PRECISIONS
    pairs = {key: other for key, other in PAIRS.items() if key[0] in precisions}
    names = dict.fromkeys((p, w) for (p, one), other in pairs.items() for w in (other, one))
    runs = {(p, w): given.folder / f"{w}-{p}" for p, w in names}
    for (precision, way), run in runs.items():
        chosen = [*WAYS[way], f"trainer.precision={precision}", f"hydra.run.dir={run}"]
        command = [sys.executable, "-m", "mae_nas", "search", *COMMON, *chosen, "resume=auto"]
        subprocess.run(command, check=True)
    read = {key: trajectory(run) for key, run in runs.items()}
    apart = {
        (p, one): np.abs(read[p, other].weights - read[p, one].weights).max(axis=1)
        for (p, one), other in pairs.items()
    }
    moved = {
        f"{w} {p}": np.abs(each.weights - 1 / len(FIRST_EDGE)).max(axis=1).tolist()
        for (p, w), each in read.items()
    }
    draw(read, apart, precisions)
    summaries = {
        f"{w} {p}": json.loads((run / "summary.json").read_text()) for (p, w), run in runs.items()
    }
    record = {
        "overrides": COMMON,
        "ways": WAYS,
        "steps": read[precisions[0], "fused"].steps.tolist(),
        "largest_difference_of_a_mixing_weight": {
            f"{w} {p}": distance.tolist() for (p, w), distance in apart.items()
        },
        "genotype_of_the_reference": {
            f"{one} {p}": [
                a == b for a, b in zip(read[p, other].cells, read[p, one].cells, strict=True)
            ]
            for (p, one), other in pairs.items()
        },
        "largest_change_of_a_mixing_weight": moved,
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
    read: dict[tuple[str, str], Trajectory],
    apart: dict[tuple[str, str], NDArray[np.float64]],
    precisions: Sequence[str],
) -> None:
    """Weights of one edge in each precision, by both cells; and the largest difference of any."""
    figure = Figure(figsize=(4 + 4 * len(precisions), 3.8), layout="constrained")
    *panels, last = figure.subplots(1, 1 + len(precisions))
    for panel, precision in zip(panels, precisions, strict=True):
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
        style = {"color": colour, "ls": STYLES[way]}
        steps = read[precision, way].steps
        last.semilogy(steps, np.maximum(distance, 1e-18), label=f"{way}, {precision}", **style)
    last.set(title="largest difference from the reference", xlabel="step")
    last.legend(fontsize="small")
    alone = f"-{precisions[0]}" if len(precisions) == 1 else ""
    canvas.save(figure, HERE / f"trajectories{alone}.png")


if __name__ == "__main__":
    main()
