"""What is said of records, in Markdown: tables, what they cost, what they could tell."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from evidence import Record, is_alone, is_training, losses_alone, losses_of
from inference import compared, detectable, spread

from mae_nas.genotype import PUBLISHED
from mae_nas.runs.listing import command_of

ALONE = "all with one seed and one mask (ratio .5, patch 8, `hierarchical`)"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def costs(records: Sequence[Record]) -> str:
    """What the records are of: a line on their number, cost, devices and commits."""
    hours = sum(record["wall_seconds"] for record in records) / 3600
    devices = {f"{r['device']['name']} ({r['device'].get('threads')} threads)" for r in records}
    commits = {
        str(r["git"]["commit"])[:7] + (" (changed)" if r["git"].get("dirty") else "")
        for r in records
    }
    alone = sum(is_alone(record) or is_training(record) for record in records)
    pretrained = sum(command_of(record["config"]) == "pretrain" for record in records)
    searches = len(records) - alone - pretrained
    words = f"{searches} search" + ("" if searches == 1 else "es")
    words += f" and {alone} trainings of given cells" if alone else ""
    words += f" and {pretrained} pretrainings" if pretrained else ""
    return (
        f"{words}, {hours:.1f} hours in all, on "
        f"{', '.join(sorted(devices))}; commits {', '.join(sorted(commits))}.\n"
    )


def power(groups: Iterable[Sequence[float]], unit: str, strata: int = 1) -> str:
    """What difference of two arms as these are would be told: a line."""
    replicated = [values for values in groups if len(values) > 1]
    if not replicated:
        return "One seed an arm: no difference can be told.\n"
    seeds, _ = Counter(map(len, replicated)).most_common(1)[0]
    sd = math.sqrt(math.fsum(np.var(v, ddof=1) for v in replicated) / len(replicated))
    times = detectable(seeds, strata)
    design = f"{seeds} seeds a side" + (f" in each of {strata} strata" if strata > 1 else "")
    if not math.isfinite(times):
        return f"{design}: no difference can be told.\n"
    return (
        f"Within an arm {unit} vary by {sd:.2g} (standard deviation, pooled over arms).\n"
        f"{design} tell arms that lie {times:.1f} such deviations apart, {times * sd:.2g} {unit},\n"
        "in 80 % of repeats (simulated with normal values and different seeds).\n"
    )


def given_alone(records: Iterable[Record]) -> dict[str, list[float]]:
    """Held-out losses of random and of published cells, each trained alone."""
    alone = [record for record in records if is_alone(record)]
    given = list(zip((r["config"]["genotype"] for r in alone), losses_of(alone), strict=True))
    return {
        "random cells": [loss for name, loss in given if name.startswith("random:")],
        "published cells": [loss for name, loss in given if name in PUBLISHED],
    }


def alone_table(records: Sequence[Record], arms: Mapping[str, Sequence[Record]]) -> str:
    """Losses of cells trained alone: given ones, and what the searches of each arm found."""
    given = given_alone(records)
    chance = given["random cells"]
    rows = []
    for name, values in given.items():
        if values:
            beside = compared(values, chance, 3) if values is not chance and chance else "–"
            rows.append((name, len(values), spread(values, 3), beside))
    for name, searches in arms.items():
        if values := losses_alone(records, searches):
            beside = compared(values, chance, 3) if chance else "–"
            count = f"{len(values)} of {len(searches)} searches"
            rows.append((name, count, spread(values, 3), beside))
    head = ("cells", "different cells", "held-out loss, alone", "less random cells")
    if not rows:
        return "No cell has been trained alone yet.\n"
    return "Cells trained alone, " + ALONE + ":\n\n" + table(head, rows)
