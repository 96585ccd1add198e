"""What in the decoder sets the skips, and whether α hears the target at all."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
    against_chance,
    agreement,
    cells_of,
    compared,
    kinship,
    spread,
    told,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mae_nas.genotype import PUBLISHED
from mae_nas.runs import canvas
from mae_nas.runs.canvas import ARCHITECTURE, MUTED, WEIGHT
from mae_nas.spaces import S0

AXES = {
    "smoke": ("seed=0,1", "mask.ratio=0.2"),
    "small": ("seed=0,1,2,3,4", "mask.ratio=0.2,0.8"),
}
FACTORS = {
    "upsampling": ("decoder.upsample", "nearest", "shuffle"),
    "taps": ("decoder.taps", [1, 2, 3], [3]),
    "kernel": ("decoder.kernel", 3, 1),
}
"""Each with its level in `hierarchical` and in `simmim`."""
KEYS = tuple(key for key, *_ in FACTORS.values())
DECODERS = {"hierarchical": ("nearest", [1, 2, 3], 3), "simmim": ("shuffle", [3], 1)}
Arm = tuple[object, ...]
"""Upsampling, taps, kernel, target, mode of masking and mask ratio."""


def sweeps(scale: str, runs: Path) -> Iterator[Sweep]:
    """Null arms, sparse masking, all combinations of parts; the first's and last's cells alone."""
    axes = axes_at(scale, AXES)
    yield "null", (*axes, "objective.target=permuted", "decoder=hierarchical,simmim")
    yield "sparse", (*axes, "mask.mode=sparse", "decoder=hierarchical")
    parts = ("decoder.upsample=nearest,shuffle", "decoder.taps=[1,2,3],[3]")
    yield "product", (*axes, *parts, f"decoder.kernel={'3' if scale == 'smoke' else '1,3'}")
    yield "alone", cells_alone(scale, runs / "null", runs / "product")


def arms_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Searches by arm, in the order of the table."""
    searches = [record for record in records if not is_alone(record)]
    groups = grouped(searches, *KEYS, "objective.target", "mask.mode", "mask.ratio")
    return {named(place): same for place, same in groups.items()}


def named(arm: Arm) -> str:
    """As rows and legends call it."""
    *decoder, target, mode, ratio = arm
    upsample, taps, kernel = decoder
    kernel = 3 if kernel == "auto" else kernel  # as it is for images as small as these
    parts = [f"{upsample}, taps {' '.join(map(str, taps))}, kernel {kernel}"]  # type: ignore[arg-type]
    parts += [name for name, its in DECODERS.items() if its == (upsample, taps, kernel)]
    parts += ["null target"] * (target == "permuted") + ["sparse"] * (mode == "sparse")
    return " · ".join([*parts, f"ratio {ratio:g}"])


def arm(decoder: str, ratio: float, target: str = "image", mode: str = "dense") -> str:
    """The name of an arm of one of the two decoders."""
    return named((*DECODERS[decoder], target, mode, ratio))


def main_effects(records: Sequence[Record]) -> Iterator[tuple[object, ...]]:
    """Skips at simmim's level of a factor less hierarchical's, at each ratio.

    One value a seed: the mean over the other factors.
    """
    product = [
        r
        for r in records
        if not is_alone(r)
        and (r["config"]["objective"]["target"], r["config"]["mask"]["mode"]) == ("image", "dense")
    ]
    for (ratio,), same in grouped(product, "mask.ratio").items():
        for factor, (key, ours, theirs) in FACTORS.items():
            levels = {str(level): by for (level,), by in grouped(same, key).items()}
            if not {str(ours), str(theirs)} <= levels.keys():
                continue
            one, other = (
                [
                    float(np.mean(skips_of(by)))
                    for by in grouped(levels[str(level)], "seed").values()
                ]
                for level in (theirs, ours)
            )
            yield (
                factor,
                f"{theirs} less {ours}",
                ratio,
                spread(one),
                spread(other),
                compared(one, other),
            )


def hearing(records: Sequence[Record]) -> Iterator[tuple[object, ...]]:
    """Each decoder beside its null arm: skips, kinship of cells, loss of cells trained alone."""
    arms = arms_of(records)
    for decoder in DECODERS:
        for ratio in (0.2, 0.8):
            names = arm(decoder, ratio), arm(decoder, ratio, target="permuted")
            if not set(names) <= arms.keys():
                continue
            real, null = (arms[name] for name in names)
            cells = [[cells_of(r["genotype"]) for r in same] for same in (real, null)]
            within = [f"{agreement(each)[1]:.1f}" if len(each) > 1 else "–" for each in cells]
            kin = "too few seeds to tell"
            if len(real) > 3 and len(null) > 3:
                excess, p = kinship(*cells)
                kin = f"{excess:+.2f}, p = {told(p)}" + (
                    ": not distinguishable" if p > 0.05 else ""
                )
            alone = [losses_alone(records, same) for same in (real, null)]
            loss = compared(*alone, digits=3) if all(alone) else "–"
            yield decoder, ratio, compared(skips_of(real), skips_of(null)), *within, kin, loss


def trained_alone(records: Sequence[Record]) -> Iterator[tuple[object, ...]]:
    """Held-out losses of cells trained alone, by where they are from, against random cells'."""
    alone = [record for record in records if is_alone(record)]
    losses = {
        "random cells": losses_of(
            [r for r in alone if r["config"]["genotype"].startswith("random:")]
        ),
        "published cells": losses_of([r for r in alone if r["config"]["genotype"] in PUBLISHED]),
    }
    for decoder in DECODERS:
        for target in ("image", "permuted"):
            for ratio in (0.2, 0.8):
                name = arm(decoder, ratio, target)
                losses[name] = losses_alone(records, arms_of(records).get(name, []))
    chance = losses["random cells"]
    for name, values in losses.items():
        if values:
            beside = "–" if values is chance or not chance else compared(values, chance, digits=3)
            yield name, len(values), spread(values, 3), beside


def sparse(records: Sequence[Record]) -> Iterator[tuple[object, ...]]:
    """`hierarchical` under sparse masking less under dense."""
    arms = arms_of(records)
    for ratio in (0.2, 0.8):
        names = arm("hierarchical", ratio, mode="sparse"), arm("hierarchical", ratio)
        if set(names) <= arms.keys():
            one, other = (arms[name] for name in names)
            seconds = [np.mean([r["wall_seconds"] for r in same]) for same in (one, other)]
            yield (
                ratio,
                compared(skips_of(one), skips_of(other)),
                compared(losses_of(one), losses_of(other), digits=3),
                f"{seconds[0]:.0f} and {seconds[1]:.0f}",
            )


def tables(records: Sequence[Record]) -> str:
    """Arms, main effects, signal against none, cells trained alone, sparse masking."""
    arms = arms_of(records)
    axes = ("decoder", "mask.ratio", "mask.mode", "objective.target")
    alone = {(r["config"]["genotype"],): [r] for r in records if is_alone(r)}
    check_replicates({(name,): same for name, same in arms.items()}, axes)
    check_replicates(alone, (*axes, "genotype", "relaxation"))
    rows = [
        (
            name,
            " ".join(map(str, skips_of(same))),
            spread(skips_of(same)),
            told(against_chance(S0(), skips_of(same))),
            spread(losses_of(same), 3),
            spread([r["entropy"]["normal"] for r in same], 4),
            spread([_median(r, "grad_norm_alpha_normal") for r in same], 3),
        )
        for name, same in arms.items()
    ]
    head = ("arm", "skips by seed", "mean ± sd", "p, chance", "held-out loss", "entropy of α")
    factors = ("factor", "levels", "ratio", "skips, first", "skips, second", "difference")
    heard = ("decoder", "ratio", "skips", "ops shared by cells of the signal", "of the null arm")
    return "\n".join(
        (
            "# Skips in the normal cell of S0, of 8, by what the decoder is made of\n",
            costs(records) + power(map(skips_of, arms.values()), "skips"),
            table((*head, "median gradient norm of α"), rows),
            "Main effects, one value a seed, the mean over the other factors:\n",
            table(factors, main_effects(records)),
            "Signal less null arm: skips; by how many of 16 edges with their operations cells\n"
            "agree more within the two arms than between them; held-out loss of the cells trained\n"
            "alone (ratio .5, patch 8, `hierarchical`, one seed, so that cells alone differ):\n",
            table((*heard, "more within than between", "loss alone"), hearing(records)),
            table(
                ("cells", "n", "held-out loss, alone", "less random cells"), trained_alone(records)
            ),
            "Sparse masking less dense, `hierarchical`:\n",
            table(("ratio", "skips", "held-out loss", "seconds a search"), sparse(records)),
            DIFFERENCES,
        )
    )


def results(records: Sequence[Record]) -> str:
    """The README's lines: each factor's effect, and signal against none."""
    head = ("factor", "levels", "mask ratio", "skips, first", "skips, second", "difference")
    rows = [
        (decoder, ratio, skips, kin, loss)
        for decoder, ratio, skips, _, _, kin, loss in hearing(records)
    ]
    beside = ("decoder", "mask ratio", "skips, signal less null", "cells", "loss of cells alone")
    return table(head, main_effects(records)) + "\n" + table(beside, rows)


def _median(record: Record, metric: str) -> float:
    return float(np.median([value for value in record["metrics"][metric] if value is not None]))


def draw(records: Sequence[Record], folder: Path) -> None:
    """Skips of every arm; what cells are made of with and without a signal; sparse beside dense."""
    arms = arms_of(records)
    _draw_arms(arms, folder)
    _draw_operations(arms, folder)
    _draw_sparse(arms, folder)


@canvas.styled
def _draw_arms(arms: Mapping[str, Sequence[Record]], folder: Path) -> None:
    figure = Figure(figsize=(9.5, 1.2 + 0.28 * len(arms)), layout="constrained")
    axes = figure.subplots()
    for row, (name, same) in enumerate(arms.items()):
        colour = MUTED if "null" in name else WEIGHT if name.startswith("nearest") else ARCHITECTURE
        skips = skips_of(same)
        apart = np.linspace(-0.2, 0.2, len(skips)) if len(skips) > 1 else np.zeros(1)
        axes.plot(skips, row + apart, "o", color=colour, ms=4, alpha=0.6)
        axes.plot(np.mean(skips), row, "|", color=colour, ms=16, mew=3)
    axes.axvline(8 / 7, color=MUTED, lw=1, ls="--")
    axes.set(xlim=(-0.3, 8.3), xlabel="skips of 8; dots: seeds; bars: means; dashed: chance")
    axes.set_yticks(range(len(arms)), list(arms), fontsize=8)
    axes.invert_yaxis()
    canvas.save(figure, folder / "arms.png")


@canvas.styled
def _draw_operations(arms: Mapping[str, Sequence[Record]], folder: Path) -> None:
    kinds = [name for name in S0().primitives("normal")[0] if name != "none"]
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    for panel, decoder in zip(figure.subplots(1, 2, sharey=True), DECODERS, strict=True):
        for ratio, style in ((0.2, "-"), (0.8, ":")):
            for target, colour in (("image", WEIGHT), ("permuted", MUTED)):
                same = arms.get(arm(decoder, ratio, target), [])
                if same:
                    counts = Counter(
                        edge["primitive"] for r in same for edge in r["genotype"]["normal"]["edges"]
                    )
                    label = f"{'signal' if target == 'image' else 'null target'}, ratio {ratio:g}"
                    means = [counts[kind] / len(same) for kind in kinds]
                    panel.plot(kinds, means, style, color=colour, marker="o", label=label)
        panel.axhline(8 / 7, color=MUTED, lw=1, ls="--")
        panel.set(title=decoder, ylabel="edges of 8, mean over seeds")
        panel.tick_params(axis="x", rotation=40)
        if panel.lines[1:]:
            panel.legend()
    canvas.save(figure, folder / "operations.png")


@canvas.styled
def _draw_sparse(arms: Mapping[str, Sequence[Record]], folder: Path) -> None:
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    by_step, by_second = figure.subplots(1, 2, sharey=True)
    for mode, colour in (("dense", WEIGHT), ("sparse", ARCHITECTURE)):
        for ratio, style in ((0.2, "-"), (0.8, ":")):
            same = arms.get(arm("hierarchical", ratio, mode=mode), [])
            if same:
                _draw_course(same, (by_step, by_second), style, colour, f"{mode}, ratio {ratio:g}")
    by_step.set(xlabel="step", ylabel="held-out loss, mean over seeds")
    by_second.set(xlabel="seconds of this computer")
    if by_step.lines:
        by_step.legend()
    canvas.save(figure, folder / "sparse.png")


def _draw_course(
    same: Sequence[Record], panels: tuple[Axes, Axes], style: str, colour: str, label: str
) -> None:
    losses = np.mean([r["course"]["held_out_loss"] for r in same], axis=0)
    steps = same[0]["course"]["step"]
    clocks = [np.interp(steps, r["metrics"]["step"], r["metrics"]["seconds"]) for r in same]
    for panel, places in zip(panels, (steps, np.mean(clocks, axis=0)), strict=True):
        panel.plot(places, losses, style, color=colour, lw=2, label=label)
