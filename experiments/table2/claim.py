"""Table 2 of the paper: does the search depend on the mask ratio and on the patch size?"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from evidence import (
    Record,
    Sweep,
    axes_at,
    cells_alone,
    check_replicates,
    costs,
    grouped,
    is_alone,
    losses_alone,
    losses_of,
    power,
    skips_of,
    table,
)
from inference import (
    DIFFERENCES,
    agreement,
    agreement_by_chance,
    cells_of,
    compared,
    compared_within,
    spread,
    told,
)
from matplotlib.figure import Figure

from mae_nas.genotype import PUBLISHED
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
    yield "searches", axes
    yield "null", (axes[0], "objective.target=permuted")
    yield "alone", cells_alone(scale, runs / "searches", runs / "null")


def searches_of(records: Sequence[Record], target: str = "image") -> list[Record]:
    """Searches for this target."""
    return [r for r in records if not is_alone(r) and r["config"]["objective"]["target"] == target]


def agreed(searches: Sequence[Record]) -> tuple[str, str]:
    """Edges and operations that seeds share, of 16, beside what permuted genotypes share."""
    if len(searches) < 2:
        return "–", "–"
    cells = [cells_of(record["genotype"]) for record in searches]
    chance = np.array(list(agreement_by_chance(cells)))
    found = np.array(agreement(cells))
    higher = (1 + (chance >= found - 1e-9).sum(0)) / (1 + len(chance))
    edges, operations = (
        f"{mine:.1f} (chance {by_chance:.1f}, p = {told(p)})"
        for mine, by_chance, p in zip(found, chance.mean(0), higher, strict=True)
    )
    return edges, operations


def settings(records: Sequence[Record]) -> Iterator[tuple[object, ...]]:
    """A row for each mask, and for the null arm's."""
    for target in ("image", "permuted"):
        groups = grouped(searches_of(records, target), *KEYS)
        for (ratio, patch), same in groups.items():
            alone = losses_alone(records, same)
            yield (
                f"{ratio} (null target)" if target == "permuted" else ratio,
                patch,
                " ".join(map(str, skips_of(same))),
                spread(skips_of(same)),
                *agreed(same),
                spread(losses_of(same), 3),
                spread(alone, 3) if alone else "–",
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
                compared_within(skips) if skips else "–",
                compared_within(alone, 3) if alone and all(map(all, alone)) else "–",
            )


def beside(records: Sequence[Record]) -> Iterator[tuple[object, ...]]:
    """Cells trained alone under one mask, by where they are from."""
    alone = [record for record in records if is_alone(record)]
    default = [
        r
        for r in searches_of(records)
        if (r["config"]["mask"]["ratio"], r["config"]["mask"]["patch_size"]) == (0.5, 8)
    ]
    losses = {
        "random": losses_of([r for r in alone if r["config"]["genotype"].startswith("random:")]),
        "published": losses_of([r for r in alone if r["config"]["genotype"] in PUBLISHED]),
        "null target, ratio 0.5, patch 8": losses_alone(records, searches_of(records, "permuted")),
        "found, ratio 0.5, patch 8": losses_alone(records, default),
        "found, all masks": losses_alone(records, searches_of(records)),
    }
    for name, values in losses.items():
        if values:
            is_few = name != "random" and len(values) <= 10
            chance = compared(values, losses["random"], 3) if is_few and losses["random"] else "–"
            yield name, len(values), spread(values, 3), chance


def tables(records: Sequence[Record]) -> str:
    """Masks, neighbouring masks, and cells trained alone."""
    for target in ("image", "permuted"):
        check_replicates(
            grouped(searches_of(records, target), *KEYS), ("mask.ratio", "mask.patch_size")
        )
    alone = {(r["config"]["genotype"],): [r] for r in records if is_alone(r)}
    check_replicates(alone, ("genotype", "relaxation"))
    head = ("ratio", "patch", "skips by seed", "mean ± sd", "edges shared, of 16")
    head += ("operations shared", "held-out loss of the supernet", "of the cell alone")
    arms = [skips_of(same) for same in grouped(searches_of(records), *KEYS).values()]
    return "\n".join(
        (
            "# Mask ratio and patch size, S0\n",
            costs(records) + power(arms, "skips"),
            "A supernet's loss is that of its own mask; cells are trained alone under one (ratio\n"
            ".5, patch 8), with one seed, so that the cells alone differ. Chance: each genotype\n"
            "with its edges and operations permuted.\n",
            table(head, settings(records)),
            "Levels against each other, within the levels of the other axis:\n",
            table(("levels", "skips", "held-out loss of the cell alone"), levels(records)),
            table(("cells", "n", "held-out loss, alone", "less random cells"), beside(records)),
            DIFFERENCES,
        )
    )


def results(records: Sequence[Record]) -> str:
    """The README's lines: the paper's errors beside what is measured here."""
    rows = []
    for axis, name in KEYS.items():
        for (level,), same in grouped(searches_of(records), axis).items():
            alone = losses_alone(records, same)
            paper = PAPER[axis].get(level, "–")
            loss = spread(alone, 3) if alone else "–"
            rows.append((f"{name} {level}", paper, spread(skips_of(same)), loss, len(same)))
    head = (
        "mask",
        "test error in %, paper",
        "skips, here",
        "loss of cells alone, here",
        "searches",
    )
    return table(head, rows)


@canvas.styled
def draw(records: Sequence[Record], folder: Path) -> None:
    """Skips and the loss of the derived cell, over both axes."""
    groups = grouped(searches_of(records), *KEYS)
    ratios, patches = (sorted({place[i] for place in groups}) for i in range(2))
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    for panel, (title, digits, measure) in zip(
        figure.subplots(1, 2),
        (
            ("skips of 8, mean over seeds", 1, skips_of),
            ("held-out loss of the cells alone", 3, lambda same: losses_alone(records, same)),
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
