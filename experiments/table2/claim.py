"""Table 2 of the paper: does the search depend on the mask ratio and on the patch size?"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from evidence import (
    Record,
    Sweep,
    axes_at,
    cells_alone,
    check_replicates,
    grouped,
    groups_alone,
    is_alone,
    losses_alone,
    losses_of,
    skips_of,
)
from inference import (
    DIFFERENCES,
    agreement,
    agreement_by_chance,
    cells_of,
    compared_within,
    spread,
    told,
)
from matplotlib.figure import Figure
from tables import ALONE, alone_table, costs, power, table

from mae_nas.runs import canvas

AXES = {
    "smoke": ("seed=0,1", "mask.ratio=0.5", "mask.patch_size=4,8"),
    "small": ("seed=0,1,2", "mask.ratio=0.1,0.3,0.5,0.7", "mask.patch_size=2,4,8,16"),
}
KEYS = {"mask.ratio": "ratio", "mask.patch_size": "patch"}
PAPER = {
    "mask.ratio": {0.1: "2.79 ± 0.18", 0.3: "2.77 ± 0.14", 0.5: "2.75 ± 0.09", 0.7: "2.78 ± 0.16"},
    "mask.patch_size": {2: "2.75 ± 0.24", 4: "2.71 ± 0.16", 8: "2.71 ± 0.12", 16: "2.74 ± 0.21"},
}
"""Errors in percent as the paper prints them, of networks trained with labels."""


def sweeps(scale: str, runs: Path) -> Iterator[Sweep]:
    """Every mask; the null arm at the default one; and what they found, trained alone."""
    axes = axes_at(scale, AXES)
    yield Sweep("searches", axes)
    yield Sweep("null", (axes[0], "objective.target=permuted"))
    yield Sweep("alone", cells_alone(scale, runs / "searches", runs / "null"))


def searches_of(records: Sequence[Record], target: str = "image") -> list[Record]:
    """Searches for this target; of ratios that hide as many patches, the highest alone.

    Of the four patches of 16 pixels in an image, ratios .3 and .5 both hide two.
    """
    searches = [
        r for r in records if not is_alone(r) and r["config"]["objective"]["target"] == target
    ]
    searches.sort(key=lambda record: record["config"]["mask"]["ratio"])
    hidden = {
        (r["mask_ratio"]["effective"], r["config"]["mask"]["patch_size"], r["seed"]): r
        for r in searches
    }
    return list(hidden.values())


def agreed(searches: Sequence[Record]) -> list[str]:
    """Edges, and edges with operations, that seeds share, of 16, beside those of permuted cells."""
    if len(searches) < 2:
        return ["–", "–"]
    cells = [cells_of(record["genotype"]) for record in searches]
    chance = np.array(list(agreement_by_chance(cells)))
    found = np.array(agreement(cells))
    higher = (1 + (chance >= found - 1e-9).sum(0)) / (1 + len(chance))
    return [
        f"{mine:.1f} (chance {by_chance:.1f}, {told(p)})"
        for mine, by_chance, p in zip(found[:2], chance.mean(0)[:2], higher[:2], strict=True)
    ]


def settings(records: Sequence[Record]) -> Iterator[tuple[object, ...]]:
    """A row for each mask, and for the null arm's."""
    for target in ("image", "permuted"):
        for (ratio, patch), same in grouped(searches_of(records, target), *KEYS).items():
            alone = losses_alone(records, same)
            yield (
                f"{ratio} (null target)" if target == "permuted" else ratio,
                f"{same[0]['mask_ratio']['effective']:.3g}",
                patch,
                " ".join(map(str, skips_of(same))),
                spread(skips_of(same)),
                *agreed(same),
                spread(losses_of(same), 3),
                f"{spread(alone, 3)} ({len(alone)})" if alone else "–",
            )


def levels(records: Sequence[Record]) -> Iterator[tuple[object, ...]]:
    """Neighbouring levels of either axis, and its ends, within the levels of the other."""
    searches = searches_of(records)
    for axis, name in KEYS.items():
        (other,) = (key for key in KEYS if key != axis)
        cells = grouped(searches, axis, other)
        mine = sorted({place[0] for place in cells})
        strata = sorted({place[1] for place in cells})
        ends = [(mine[0], mine[-1])] if len(mine) > 2 else []
        for low, high in [*pairwise(mine), *ends]:
            both = [(cells.get((low, s)), cells.get((high, s))) for s in strata]
            pairs = [(one, two) for one, two in both if one and two]
            skips = [(skips_of(one), skips_of(two)) for one, two in pairs]
            alone = [(losses_alone(records, one), losses_alone(records, two)) for one, two in pairs]
            yield (
                f"{name} {low} less {high}",
                len(pairs),
                compared_within(skips) if skips else "–",
                compared_within(alone, 3) if alone and all(map(all, alone)) else "–",
            )


def tables(records: Sequence[Record]) -> str:
    """Masks, neighbouring masks, and cells trained alone."""
    searches, null = searches_of(records), searches_of(records, "permuted")
    masks = grouped(searches, *KEYS)
    axes = ("mask.ratio", "mask.patch_size", "objective.target", "genotype", "relaxation")
    nulls = {("null target", *place): same for place, same in grouped(null, *KEYS).items()}
    check_replicates({**masks, **nulls, **groups_alone(records)}, axes)
    head = ("ratio", "hidden", "patch", "skips by seed", "mean ± sd", "edges shared, of 16")
    head += ("with operations", "held-out loss of the supernet", "of different cells alone (n)")
    strata = len({patch for _, patch in masks})
    arms = {
        "null target, ratio 0.5, patch 8": null,
        "found, ratio 0.5, patch 8": masks.get((0.5, 8), []),
        "found, any mask": searches,
    }
    return "\n".join(
        (
            "# Mask ratio and patch size, S0\n",
            costs(records) + power(map(skips_of, masks.values()), "skips", strata),
            "A supernet's loss is that of its own mask; cells are trained alone, " + ALONE + ".\n"
            "Hidden: the ratio in whole patches; where two ratios hide as many, the higher is\n"
            "listed. "
            "Chance: each genotype with its edges and operations permuted.\n",
            table(head, settings(records)),
            "Levels against each other, within the levels of the other axis:\n",
            table(("levels", "strata", "skips", "held-out loss of cells alone"), levels(records)),
            alone_table(records, arms),
            DIFFERENCES,
        )
    )


def results(records: Sequence[Record]) -> str:
    """The README's lines: the paper's errors beside what is measured here."""
    rows = []
    for axis, name in KEYS.items():
        for (level,), same in grouped(searches_of(records), axis).items():
            alone = losses_alone(records, same)
            loss = f"{np.mean(alone):.3f}" if alone else "–"
            skips = f"{np.mean(skips_of(same)):.2f}"
            rows.append((f"{name} {level}", PAPER[axis].get(level, "–"), skips, loss, len(same)))
    head = (
        "mask",
        "test error in %, paper",
        "skips, here",
        "loss of cells alone, here",
        "searches",
    )
    return table(head, rows)


def _mean_alone(records: Sequence[Record]) -> Callable[[Sequence[Record]], list[float]]:
    return lambda same: losses_alone(records, same)


@canvas.styled
def draw(records: Sequence[Record], folder: Path) -> None:
    """Skips and the loss of the derived cell, over both axes."""
    groups = grouped(searches_of(records), *KEYS)
    if not groups:
        return
    ratios, patches = (sorted({place[i] for place in groups}) for i in range(2))
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    for panel, (title, digits, measure) in zip(
        figure.subplots(1, 2),
        (
            ("skips of 8, mean over seeds", 1, skips_of),
            ("held-out loss of the cells alone", 3, _mean_alone(records)),
        ),
        strict=True,
    ):
        values = np.full((len(patches), len(ratios)), np.nan)
        for (ratio, patch), same in groups.items():
            if found := measure(same):
                values[patches.index(patch), ratios.index(ratio)] = np.mean(found)
        panel.imshow(values, cmap="Blues", aspect="auto")
        middle = (np.nanmax(values) + np.nanmin(values)) / 2 if np.isfinite(values).any() else 0
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if value > middle else "black"
                panel.text(
                    column, row, f"{value:.{digits}f}", ha="center", va="center", color=colour
                )
        panel.set(title=title, xlabel="mask ratio", ylabel="patch size, pixels")
        panel.set_xticks(range(len(ratios)), list(map(str, ratios)))
        panel.set_yticks(range(len(patches)), list(map(str, patches)))
    canvas.save(figure, folder / "masks.png")
