"""Table 3 of the paper: skips in the normal cell, with and without the hierarchical decoder."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from evidence import (
    Record,
    Sweep,
    axes_at,
    check_replicates,
    costs,
    grouped,
    losses_of,
    power,
    skips_of,
    stable_since,
    table,
)
from inference import against_chance, chance_of_a_skip, compared, spread, told
from matplotlib.figure import Figure

from mae_nas import spaces
from mae_nas.runs import canvas
from mae_nas.runs.canvas import ARCHITECTURE, MUTED, WEIGHT

AXES = {
    "smoke": ("seed=0", "space=s0", "mask.ratio=0.2,0.8"),
    "small": ("space=s0,s2", "seed=0,1,2,3,4", "mask.ratio=0.2,0.4,0.6,0.8"),
}
KEYS = ("space._target_", "decoder.upsample", "mask.ratio")
ARMS = {"nearest": "hierarchical", "shuffle": "simmim"}
COLOURS = {"nearest": WEIGHT, "shuffle": ARCHITECTURE}
PAPER = {
    "shuffle": {0.2: 8, 0.4: 6, 0.6: 2, 0.8: 1},
    "nearest": dict.fromkeys((0.2, 0.4, 0.6, 0.8), 1),
}
"""Skips in S0 as the paper prints them, after a whole search."""


def sweeps(scale: str, _: Path) -> Iterator[Sweep]:
    """Both decoders as the paper has them."""
    yield "searches", (*axes_at(scale, AXES), "decoder=hierarchical,simmim")


def predicted(groups: Mapping[tuple[Any, ...], Sequence[Record]]) -> Iterator[tuple[str, str]]:
    """What is predicted besides: all ratios together, and the lowest with the highest."""
    for space, upsample in dict.fromkeys(place[:2] for place in groups):
        arm = {
            ratio: skips_of(same)
            for (*where, ratio), same in groups.items()
            if where == [space, upsample]
        }
        every = [skips for same in arm.values() for skips in same]
        name, p = space.rpartition(".")[2], against_chance(space_of(space), every)
        total = f"{sum(every)} skips of {8 * len(every)}, {spread(every)} a cell, p = {told(p)}"
        yield f"{name}, {ARMS[upsample]}, all ratios, against chance", total
        if len(arm) > 1:
            low, high = min(arm), max(arm)
            yield (
                f"{name}, {ARMS[upsample]}, ratio {low:g} less {high:g}",
                compared(arm[low], arm[high]),
            )


def space_of(name: str) -> spaces.SearchSpace:
    """`mae_nas.spaces.S0` as the space itself."""
    return getattr(spaces, name.rpartition(".")[2])()


def tables(records: Sequence[Record]) -> str:
    """A row for each space, decoder and ratio, then the decoders against each other."""
    groups = grouped(records, *KEYS)
    check_replicates(groups, ("space", "decoder", "mask.ratio"))
    rows, contrasts = [], []
    for (space, upsample, ratio), same in groups.items():
        skips = skips_of(same)
        chance = space_of(space)
        rows.append(
            (
                space.rpartition(".")[2],
                ARMS[upsample],
                ratio,
                " ".join(map(str, skips)),
                spread(skips),
                f"{float(8 * chance_of_a_skip(chance)):.2f}",
                told(against_chance(chance, skips)),
                spread(losses_of(same), 3),
                " ".join(str(stable_since(record)) for record in same),
                PAPER[upsample].get(ratio, "–") if space.endswith("S0") else "–",
            )
        )
        others = groups.get((space, "nearest", ratio))
        if upsample == "shuffle" and others:
            difference = compared(skips, skips_of(others))
            contrasts.append((space.rpartition(".")[2], ratio, len(skips), difference))
    head = ("space", "decoder", "ratio", "skips by seed", "mean ± sd", "chance", "p, chance")
    head += ("held-out loss", "skips unchanged since step", "paper's skips")
    return (
        "# Skips in the normal cell, of 8\n\n"
        + costs(records)
        + power(map(skips_of, groups.values()), "skips")
        + "\n"
        + table(head, rows)
        + "\nsimmim less hierarchical: difference of means, the shifts that an exact permutation\n"
        "test does not refute (95 %), and its p:\n\n"
        + table(("space", "ratio", "seeds", "difference"), contrasts)
        + "\n"
        + table(("also predicted", "found"), predicted(groups))
        + "\nEach p is of one comparison, not corrected for their number.\n"
    )


def results(records: Sequence[Record]) -> str:
    """The README's lines: the paper's skips beside ours."""
    rows = []
    for (space, upsample, ratio), same in grouped(records, *KEYS).items():
        if space.endswith("S0"):
            skips = skips_of(same)
            p = told(against_chance(space_of(space), skips))
            paper = PAPER[upsample].get(ratio, "–")
            rows.append((ARMS[upsample], ratio, paper, spread(skips), len(skips), p))
    head = (
        "decoder",
        "mask ratio",
        "skips, paper",
        "skips, here",
        "seeds",
        "p against chance, 8/7",
    )
    return table(head, rows)


def draw(records: Sequence[Record], folder: Path) -> None:
    """`skips.png` and `signals.png`."""
    _draw_skips(records, folder)
    _draw_signals(records, folder)


@canvas.styled
def _draw_signals(records: Sequence[Record], folder: Path) -> None:
    """What α and the decoder's branches do along the way in S0, at the lowest ratio."""
    lowest = min(record["config"]["mask"]["ratio"] for record in records)
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    entropy, gradients, branches = figure.subplots(1, 3)
    styles = {"normal": "-", "reduce": ":", "F1": "-", "F2": "--", "F3": ":"}
    for (space, upsample, ratio), same in grouped(records, *KEYS).items():
        if not space.endswith("S0") or ratio != lowest:
            continue
        colour, arm = COLOURS[upsample], ARMS[upsample]
        for panel, courses, names in (
            (entropy, [r["course"] for r in same], {"entropy_normal", "entropy_reduce"}),
            (
                gradients,
                [r["metrics"] for r in same],
                {"grad_norm_alpha_normal", "grad_norm_alpha_reduce"},
            ),
            (branches, [r["metrics"] for r in same], {"rms_F1", "rms_F2", "rms_F3"}),
        ):
            for name in sorted(names & courses[0].keys()):
                values = np.array([course[name] for course in courses], float)
                last = name.rpartition("_")[2]
                panel.plot(
                    courses[0]["step"],
                    values.mean(0),
                    styles[last],
                    color=colour,
                    lw=2,
                    label=f"{arm}, {last}",
                )
    entropy.set(title="entropy of α", xlabel="step")
    gradients.set(title="gradient norm of α", xlabel="step", yscale="log")
    branches.set(title="RMS of a branch", xlabel="step")
    for panel in (entropy, gradients, branches):
        panel.legend(fontsize=7)
    figure.supxlabel(f"S0, mask ratio {lowest:g}, means over seeds", fontsize=9, color=MUTED)
    canvas.save(figure, folder / "signals.png")


@canvas.styled
def _draw_skips(records: Sequence[Record], folder: Path) -> None:
    """Skips over the ratio, every seed a dot; and over the steps, the mean of each arm."""
    names = sorted({record["config"]["space"]["_target_"] for record in records})
    figure = Figure(figsize=(9.5, 3.4 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False)
    for (by_ratio, by_step), name in zip(panels, names, strict=True):
        chance, short = float(8 * chance_of_a_skip(space_of(name))), name.rpartition(".")[2]
        here = [r for r in records if r["config"]["space"]["_target_"] == name]
        for upsample, arm in ARMS.items():
            colour = COLOURS[upsample]
            groups = {
                ratio: same
                for (kind, ratio), same in grouped(here, *KEYS[1:]).items()
                if kind == upsample
            }
            means = [np.mean(skips_of(same)) for same in groups.values()]
            by_ratio.plot(list(groups), means, color=colour, lw=2, label=arm)
            for ratio, same in groups.items():
                apart = np.linspace(-0.02, 0.02, len(same)) if len(same) > 1 else [0.0]
                by_ratio.plot(
                    ratio + np.asarray(apart), skips_of(same), "o", color=colour, ms=4, alpha=0.6
                )
            if short == "S0":
                by_ratio.plot(*zip(*PAPER[upsample].items(), strict=True), "x", color=colour, ms=8)
            for ratio, same in list(groups.items())[:: max(1, len(groups) - 1)]:
                course = [record["course"] for record in same]
                steps = course[0]["step"]
                mean = np.mean([c["skips_normal"][: len(steps)] for c in course], axis=0)
                style = "-" if ratio == min(groups) else ":"
                by_step.plot(
                    steps, mean, style, color=colour, lw=2, label=f"{arm}, ratio {ratio:g}"
                )
        for panel in (by_ratio, by_step):
            panel.axhline(chance, color=MUTED, lw=1, ls="--")
            panel.set(ylim=(-0.4, 8.4), ylabel="skips of 8")
        by_ratio.set(title=f"{short}: after the last step", xlabel="mask ratio")
        by_step.set(title=f"{short}: mean over seeds", xlabel="step")
        by_ratio.legend()
        by_step.legend()
    figure.supxlabel(
        "dots: seeds; dashed: chance; crosses: the paper's, after a whole search",
        fontsize=9,
        color=MUTED,
    )
    canvas.save(figure, folder / "skips.png")
