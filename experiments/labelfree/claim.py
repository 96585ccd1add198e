"""Without any label, is a found network worth more than a random one, or a ResNet as fast?"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence import Record, Sweep, axes_at, cells_found
from tables import costs, table

from mae_nas.cli.compare import MEASURES, compared, measured, panels
from mae_nas.runs.compare_plots import plot_comparison
from mae_nas.runs.files import read_json
from mae_nas.runs.listing import command_of

AXES = {
    "smoke": ("seeds=1", "budget_minutes=0.05", "most=300", "network=tiny", "batch=8"),
    "small": ("seeds=3", "budget_minutes=2", "most=5000", "network=tiny", "batch=32"),
    "full": ("seeds=5", "budget_minutes=600", "network=cifar_small", "batch=32"),
}
RANDOM = "random:0,random:1"


def sweeps(scale: str, runs: Path) -> Iterator[Sweep]:
    """One search; then networks of its cell, of random ones and ResNet-18, equally fast."""
    yield Sweep("searches", ("seed=range(0,1)",), experiment="cifar10")
    genotypes = ",".join([*(word.strip('"') for word in cells_found(runs / "searches")), RANDOM])
    words = (f"genotypes={genotypes}", "models=resnet18", *axes_at(scale, AXES))
    yield Sweep("compare", (*words, "data=cifar10", "data.held_out=512"), command="compare")


def extra(run: Path) -> Mapping[str, Any]:
    """Of a pretraining: what the probes found, and how widths and steps were chosen."""
    if not (run / "probe.json").exists():
        return {}
    name, _, _ = run.name.rpartition("-seed")
    found = {"network": name, "named": name, "probe": read_json(run / "probe.json")}
    if name not in ("random_0", "random_1", "resnet18"):
        found["network"] = "found"
    return found | {"plan": read_json(run.parent / "plan.json")}


def rows_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """As `mae-nas compare` has them, the found network first."""
    kept = [r for r in records if command_of(r["config"]) == "pretrain"]
    order = list(kept[0]["plan"]["networks"]) if kept else []
    kept.sort(key=lambda r: (order.index(r["named"]), r["seed"]))
    return [{**record, **record["plan"]["networks"][record["named"]]} for record in kept]


def tables(records: Sequence[Record]) -> str:
    """Every seed, then means with intervals and what can be told."""
    rows = rows_of(records)
    if len({json.dumps(row["plan"], sort_keys=True) for row in rows}) > 1:
        raise ValueError("records of several plans: keep one in a folder of its own")
    seeds = (
        (
            *(row["network"], row["seed"], row["steps"], f"{row['final']['held_out_loss']:.4f}"),
            *(f"{measured([row], key)[row['network']][0]:.4g}" for key in MEASURES),
            f"{row['probe']['random']['rank_me']:.4g}" if "random" in row["probe"] else "–",
            f"{row['probe']['random']['linear']['top1']:.4g}" if "random" in row["probe"] else "–",
        )
        for row in rows
    )
    head = ("network", "seed", "steps", "held-out loss", *MEASURES.values())
    head += ("RankMe, random weights", "linear probe, random weights")
    means = list(compared(rows)) if rows else []
    names = list(dict.fromkeys(key for row in means for key in row))
    return "\n".join(
        (
            "# Features without labels, networks equally fast\n",
            costs(records),
            table(head, seeds),
            "Means, with Student's 95 % intervals over seeds; differences by Welch's, each by\n"
            "itself, not corrected for their number:\n",
            table(
                ("", *(row["network"] for row in means)),
                ((name, *(row.get(name, "–") for row in means)) for name in names[1:]),
            ),
        )
    )


def results(records: Sequence[Record]) -> str:
    """The README's lines."""
    rows = rows_of(records)
    shown = ("network", "params M", "latency ms", "kNN, %", "linear probe, %", "RankMe")
    return table(shown, ([row.get(name, "–") for name in shown] for row in compared(rows)))


def draw(records: Sequence[Record], folder: Path) -> None:
    """A panel for each probe."""
    plot_comparison(panels(rows_of(records)), folder / "compare.png")
