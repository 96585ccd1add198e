"""Table 3 of the paper: skips in the normal cell, with and without the hierarchical decoder."""

from collections.abc import Iterator, Mapping, Sequence
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
    losses_of,
    mean_course,
    skips_of,
    stable_since,
)
from inference import DIFFERENCES, against_chance, chance_of_a_skip, compared, spread, told
from matplotlib.figure import Figure
from tables import alone_table, costs, power, table

from mae_nas import spaces
from mae_nas.runs import canvas
from mae_nas.runs.canvas import ARCHITECTURE, MUTED, WEIGHT

AXES = {
    "smoke": ("seed=0", "space=s0", "mask.ratio=0.2,0.8"),
    "small": ("space=s0,s2", "seed=0,1,2,3,4", "mask.ratio=0.2,0.4,0.6,0.8"),
}
KEYS = ("space._target_", "decoder.upsample", "mask.ratio")
ARMS = {"nearest": "hierarchical", "shuffle": "simmim"}
COLOURS = {"hierarchical": WEIGHT, "simmim": ARCHITECTURE}
PAPER = {
    "simmim": {0.2: 8, 0.4: 6, 0.6: 2, 0.8: 1},
    "hierarchical": dict.fromkeys((0.2, 0.4, 0.6, 0.8), 1),
}
"""Skips in S0 as the paper prints them, after a whole search."""


def sweeps(scale: str, runs: Path) -> Iterator[Sweep]:
    """Both decoders as the paper has them, and what they found, trained alone."""
    yield Sweep("searches", (*axes_at(scale, AXES), "decoder=hierarchical,simmim"))
    yield Sweep("alone", cells_alone(scale, runs / "searches"))


def arms_of(records: Sequence[Record]) -> dict[tuple[str, str, float], list[Record]]:
    """Searches by space, decoder and mask ratio."""
    groups = grouped((record for record in records if not is_alone(record)), *KEYS)
    return {
        (space.rpartition(".")[2], ARMS[upsample], ratio): same
        for (space, upsample, ratio), same in groups.items()
    }


def predicted(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """What is predicted besides: all ratios together, and the lowest with the highest.

    Ratios share their seeds, so that skips of all ratios are no independent draws: a seed's total
    is one value, and has no p.
    """
    groups = arms_of(records)
    for space, decoder in dict.fromkeys((space, decoder) for space, decoder, _ in groups):
        arm = {place[2]: same for place, same in groups.items() if place[:2] == (space, decoder)}
        seeds = grouped((record for same in arm.values() for record in same), "seed").values()
        means = [float(np.mean(skips_of(same))) for same in seeds]
        chance = float(8 * chance_of_a_skip(getattr(spaces, space)()))
        yield (
            f"{space}, {decoder}, mean over ratios, by seed",
            f"{' '.join(f'{mean:.2f}' for mean in means)} (chance {chance:.2f})",
        )
        if len(arm) > 1:
            low, high = min(arm), max(arm)
            yield (
                f"{space}, {decoder}, ratio {low:g} less {high:g}",
                compared(skips_of(arm[low]), skips_of(arm[high])),
            )


def tables(records: Sequence[Record]) -> str:
    """A row for each space, decoder and ratio; the decoders compared; the cells trained alone."""
    groups = arms_of(records)
    axes = ("space", "decoder", "mask.ratio", "genotype", "relaxation")
    check_replicates({**groups, **groups_alone(records)}, axes)
    rows, contrasts = [], []
    for (name, decoder, ratio), same in groups.items():
        skips, space = skips_of(same), getattr(spaces, name)()
        rows.append(
            (
                name,
                decoder,
                ratio,
                " ".join(map(str, skips)),
                spread(skips),
                f"{float(8 * chance_of_a_skip(space)):.2f}",
                told(against_chance(space, skips)),
                spread(losses_of(same), 3),
                *(
                    " ".join(str(stable_since(record, course)) for record in same)
                    for course in ("skips_normal", "verdict")
                ),
                PAPER[decoder].get(ratio, "–") if name == "S0" else "–",
            )
        )
        others = groups.get((name, "hierarchical", ratio))
        if decoder == "simmim" and others:
            ours = skips_of(others)
            loss = compared(losses_of(same), losses_of(others), 3)
            seeds = f"{len(skips)} and {len(ours)}"
            contrasts.append((name, ratio, seeds, compared(skips, ours), loss))
    head = ("space", "decoder", "ratio", "skips by seed", "mean ± sd", "chance", "against chance")
    head += ("held-out loss", "skips unchanged since step", "verdict unchanged", "paper's skips")
    arms = {
        f"{space}, {decoder}, ratio {r:g}": same for (space, decoder, r), same in groups.items()
    }
    return "\n".join(
        (
            "# Skips in the normal cell, of 8\n",
            costs(records) + power(map(skips_of, groups.values()), "skips"),
            table(head, rows),
            "simmim less hierarchical:\n",
            table(("space", "ratio", "seeds", "skips", "held-out loss"), contrasts),
            table(("also predicted", "found"), predicted(records)),
            alone_table(records, arms),
            DIFFERENCES,
        )
    )


def results(records: Sequence[Record]) -> str:
    """The README's lines: the paper's skips beside ours."""
    rows = [
        (
            space,
            decoder,
            ratio,
            PAPER[decoder].get(ratio, "–") if space == "S0" else "–",
            spread(skips_of(same)),
            len(same),
            told(against_chance(getattr(spaces, space)(), skips_of(same))),
            spread(losses_of(same), 3),
        )
        for (space, decoder, ratio), same in arms_of(records).items()
    ]
    head = ("space", "decoder", "mask ratio", "skips, paper", "skips, here", "seeds")
    return table((*head, "against chance", "held-out loss"), rows)


def draw(records: Sequence[Record], folder: Path) -> None:
    """`skips.png` and `signals.png`."""
    arms = arms_of(records)
    if arms:
        _draw_skips(arms, folder)
        _draw_signals(arms, folder)


Arms = Mapping[tuple[str, str, float], Sequence[Record]]


@canvas.styled
def _draw_signals(arms: Arms, folder: Path) -> None:
    """What α and the decoder's branches do on the way, in the first space at its lowest ratio."""
    space, _, lowest = min(arms, key=lambda place: (place[0], place[2]))
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    styles = {"normal": "-", "reduce": ":", "F1": "-", "F2": "--", "F3": ":"}
    for panel, title, source, start in zip(
        figure.subplots(1, 3),
        ("entropy of α", "gradient norm of α", "RMS of a branch"),
        ("course", "metrics", "metrics"),
        ("entropy_", "grad_norm_alpha_", "rms_"),
        strict=True,
    ):
        for decoder, colour in COLOURS.items():
            same = arms.get((space, decoder, lowest), ())
            for name in sorted({*same[0][source]} if same else ()):
                last = name.removeprefix(start)
                if name.startswith(start) and same[0][source][name][-1] is not None:
                    steps, means = mean_course(same, source, name)
                    label = f"{decoder}, {last}"
                    panel.plot(steps, means, styles[last], color=colour, lw=2, label=label)
        panel.set(title=title, xlabel="step")
        panel.legend(fontsize=7)
    figure.supxlabel(f"{space}, mask ratio {lowest:g}, means over seeds", fontsize=9, color=MUTED)
    canvas.save(figure, folder / "signals.png")


@canvas.styled
def _draw_skips(arms: Arms, folder: Path) -> None:
    """Skips over the ratio, every seed a dot; and over the steps, the mean of each arm."""
    names = sorted({space for space, *_ in arms})
    figure = Figure(figsize=(9.5, 3.4 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False)
    for (by_ratio, by_step), name in zip(panels, names, strict=True):
        for decoder, colour in COLOURS.items():
            here = {r: same for (*where, r), same in arms.items() if where == [name, decoder]}
            means = [np.mean(skips_of(same)) for same in here.values()]
            by_ratio.plot(list(here), means, color=colour, lw=2, label=decoder)
            for ratio, same in here.items():
                apart = np.linspace(-0.02, 0.02, len(same)) if len(same) > 1 else np.zeros(1)
                by_ratio.plot(ratio + apart, skips_of(same), "o", color=colour, ms=4, alpha=0.6)
            if name == "S0":
                by_ratio.plot(*zip(*PAPER[decoder].items(), strict=True), "x", color=colour, ms=8)
            for ratio in sorted({min(here), max(here)} if here else ()):
                steps, mean = mean_course(here[ratio], "course", "skips_normal")
                style, label = "-" if ratio == min(here) else ":", f"{decoder}, ratio {ratio:g}"
                by_step.plot(steps, mean, style, color=colour, lw=2, label=label)
        for panel in (by_ratio, by_step):
            chance = float(8 * chance_of_a_skip(getattr(spaces, name)()))
            panel.axhline(chance, color=MUTED, lw=1, ls="--")
            panel.set(ylim=(-0.4, 8.4), ylabel="skips of 8")
            panel.legend()
        by_ratio.set(title=f"{name}: after the last step", xlabel="mask ratio")
        by_step.set(title=f"{name}: mean over seeds", xlabel="step")
    figure.supxlabel(
        "dots: seeds; dashed: chance; crosses: the paper's, after a whole search",
        fontsize=9,
        color=MUTED,
    )
    canvas.save(figure, folder / "skips.png")
