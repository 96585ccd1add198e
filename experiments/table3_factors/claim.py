"""What in the decoder sets the skips, and whether α hears the target at all."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
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
    mean_course,
    skips_of,
)
from inference import (
    DIFFERENCES,
    against_chance,
    agreement,
    cells_of,
    chance_of_a_skip,
    compared,
    kinship,
    spread,
    told,
    verdict,
)
from matplotlib.figure import Figure
from tables import ALONE, alone_table, costs, power, table

from mae_nas.runs import canvas
from mae_nas.runs.canvas import ARCHITECTURE, MUTED, WEIGHT
from mae_nas.spaces import S0

AXES = {
    "smoke": ("seed=0,1", "mask.ratio=0.2"),
    "small": ("seed=0,1,2,3,4", "mask.ratio=0.2,0.8"),
}
FACTORS = {
    "upsampling": ("nearest", "shuffle"),
    "taps": ((1, 2, 3), (3,)),
    "kernel": (3, 1),
}
"""Each with its level in `hierarchical` and in `simmim`."""
Arm = tuple[object, ...]
"""Upsampling, taps, kernel, target, mode of masking and mask ratio."""
DECODERS: dict[str, Arm] = dict(
    zip(("hierarchical", "simmim"), zip(*FACTORS.values(), strict=True), strict=True)
)
KEYS = ("decoder.upsample", "decoder.taps", "decoder.kernel")
KEYS += ("objective.target", "mask.mode", "mask.ratio")
SPACE = S0()
Arms = Mapping[Arm, Sequence[Record]]


def sweeps(scale: str, runs: Path) -> Iterator[Sweep]:
    """Null arms, sparse masking, all combinations of parts; cells of both decoders alone."""
    axes = axes_at(scale, AXES)
    yield Sweep("null", (*axes, "objective.target=permuted", "decoder=hierarchical,simmim"))
    yield Sweep("sparse", (*axes, "mask.mode=sparse", "decoder=hierarchical"))
    parts = ("decoder.upsample=nearest,shuffle", "decoder.taps=[1,2,3],[3]")
    yield Sweep("product", (*axes, *parts, f"decoder.kernel={'3' if scale == 'smoke' else '1,3'}"))
    yield Sweep(
        "alone", cells_alone(scale, runs / "null", runs / "product", wanted=is_of_a_decoder)
    )


def is_of_a_decoder(record: Record) -> bool:
    """Whether its decoder is one of the paper's two, and no other combination of their parts."""
    (arm,) = arms_of([record])
    return arm[:3] in DECODERS.values()


def arms_of(records: Sequence[Record]) -> dict[Arm, list[Record]]:
    """Searches by arm."""
    searches = (record for record in records if not is_alone(record))
    return {
        (upsample, taps, 3 if kernel == "auto" else kernel, *rest): same  # 3 for such small images
        for (upsample, taps, kernel, *rest), same in grouped(searches, *KEYS).items()
    }


def named(arm: Arm) -> str:
    """As rows and legends call it."""
    *decoder, target, mode, ratio = arm
    parts = [
        ", ".join(f"{name} {_said(level)}" for name, level in zip(FACTORS, decoder, strict=True))
    ]
    parts += [name for name, its in DECODERS.items() if its == tuple(decoder)]
    parts += ["null target"] * (target == "permuted") + ["sparse"] * (mode == "sparse")
    return " · ".join([*parts, f"ratio {ratio:g}"])


def _said(level: object) -> str:
    return " ".join(map(str, level)) if isinstance(level, tuple) else str(level)


def arm_of(decoder: str, ratio: float, target: str = "image", mode: str = "dense") -> Arm:
    """An arm of one of the two decoders."""
    return (*DECODERS[decoder], target, mode, ratio)


def ratios_of(arms: Arms) -> list[float]:
    """Mask ratios among the arms."""
    return sorted({ratio for *_, ratio in arms if isinstance(ratio, float)})


def main_effects(arms: Arms) -> Iterator[tuple[object, ...]]:
    """Skips at simmim's level of a factor less hierarchical's, at each ratio.

    One value a seed: the mean over the other factors, of seeds that have every combination.
    """
    for ratio in ratios_of(arms):
        combinations = list(product(*FACTORS.values()))
        skips: list[dict[int, int]] = []
        for combination in combinations:
            same = arms.get((*combination, "image", "dense", ratio), ())
            skips.append({record["seed"]: record["skip_counts"]["normal"] for record in same})
        seeds = sorted(set.intersection(*(set(each) for each in skips)))
        if not seeds:
            continue
        for place, (factor, (ours, theirs)) in enumerate(FACTORS.items()):
            one, other = (
                [
                    float(
                        np.mean(
                            [
                                s[seed]
                                for c, s in zip(combinations, skips, strict=True)
                                if c[place] == level
                            ]
                        )
                    )
                    for seed in seeds
                ]
                for level in (theirs, ours)
            )
            levels = f"{_said(theirs)} less {_said(ours)}"
            yield (
                factor,
                levels,
                ratio,
                len(seeds),
                spread(one),
                spread(other),
                compared(one, other),
            )


def hearing(records: Sequence[Record]) -> Iterator[tuple[object, ...]]:
    """Each decoder beside its null arm: skips, kinship of cells, loss of cells trained alone."""
    arms = arms_of(records)
    for decoder, ratio in product(DECODERS, ratios_of(arms)):
        real, null = (arms.get(arm_of(decoder, ratio, t), []) for t in ("image", "permuted"))
        if not real or not null:
            continue
        cells = [[cells_of(record["genotype"]) for record in same] for same in (real, null)]
        kin = ["too few seeds to tell"] * 3
        if min(map(len, cells)) > 3:
            kin = [f"{excess:+.2f}, {verdict(p)}" for excess, p in kinship(*cells)]
        within = [f"{agreement(each)[1]:.1f}" if len(each) > 1 else "–" for each in cells]
        alone = [losses_alone(records, same) for same in (real, null)]
        loss = (
            compared(alone[0], alone[1], 3) + f" (n {len(alone[0])}, {len(alone[1])})"
            if all(alone)
            else "–"
        )
        yield decoder, ratio, compared(skips_of(real), skips_of(null)), *within, *kin, loss


def sparse(arms: Arms) -> Iterator[tuple[object, ...]]:
    """`hierarchical` under sparse masking less under dense."""
    for ratio in ratios_of(arms):
        one, other = (arms.get(arm_of("hierarchical", ratio, mode=m)) for m in ("sparse", "dense"))
        if one and other:
            seconds = [[record["wall_seconds"] for record in same] for same in (one, other)]
            yield (
                ratio,
                compared(skips_of(one), skips_of(other)),
                compared(losses_of(one), losses_of(other), 3),
                " and ".join(spread(each, 0) for each in seconds),
            )


def tables(records: Sequence[Record]) -> str:
    """Arms, main effects, signal against none, cells trained alone, sparse masking."""
    arms = arms_of(records)
    axes = ("decoder", "mask.ratio", "mask.mode", "objective.target", "genotype", "relaxation")
    check_replicates({**arms, **groups_alone(records)}, axes)
    rows = [
        (
            named(arm),
            " ".join(map(str, skips_of(same))),
            spread(skips_of(same)),
            told(against_chance(SPACE, skips_of(same))),
            spread(losses_of(same), 3),
            spread([record["entropy"]["normal"] for record in same], 4),
            spread([_median(record, "grad_norm_alpha_normal") for record in same], 3),
        )
        for arm, same in arms.items()
    ]
    head = ("arm", "skips by seed", "mean ± sd", "against chance", "held-out loss", "entropy of α")
    effects = ("factor", "levels", "ratio", "seeds", "skips, first", "skips, second", "difference")
    heard = ("decoder", "ratio", "skips", "shared within signal", "within null", "edges")
    both = {named(arm): same for arm, same in arms.items() if arm[:3] in DECODERS.values()}
    return "\n".join(
        (
            "# Skips in the normal cell of S0, of 8, by what the decoder is made of\n",
            costs(records) + power(map(skips_of, arms.values()), "skips"),
            table((*head, "median gradient norm of α"), rows),
            "Main effects, one value a seed, the mean over the other factors:\n",
            table(effects, main_effects(arms)),
            "Signal less null arm. Skips; edges with their operations, of 16, that two cells of\n"
            "an arm share; by how many edges, edges with operations, and operations anywhere\n"
            "cells agree more within the two arms than between them; loss of the cells alone,\n"
            f"{ALONE}:\n",
            table((*heard, "edges with operations", "operations", "loss alone"), hearing(records)),
            alone_table(records, both),
            "Sparse masking less dense, `hierarchical`; seconds by the clock, beside anything:\n",
            table(("ratio", "skips", "held-out loss", "seconds a search"), sparse(arms)),
            DIFFERENCES,
        )
    )


def results(records: Sequence[Record]) -> str:
    """The README's lines: each factor's effect, and signal against none."""
    effects = ("factor", "levels", "mask ratio", "seeds", "skips, first", "skips, second")
    rows = [
        (decoder, ratio, skips, operations, loss)
        for decoder, ratio, skips, *_, operations, loss in hearing(records)
    ]
    heard = ("decoder", "mask ratio", "skips, signal less null", "operations agree more within")
    found = list(main_effects(arms_of(records)))
    parts = [table((*effects, "difference"), found)] if found else []
    parts += [table((*heard, "loss of cells alone"), rows)] if rows else []
    return "\n".join(parts) or "Too few searches yet, see its folder.\n"


def _median(record: Record, metric: str) -> float:
    return float(np.median([value for value in record["metrics"][metric] if value is not None]))


def draw(records: Sequence[Record], folder: Path) -> None:
    """Skips of every arm; what cells are made of with and without a signal; sparse beside dense."""
    arms = arms_of(records)
    if arms:
        _draw_arms(arms, folder)
        _draw_operations(arms, folder)
        _draw_sparse(arms, folder)


@canvas.styled
def _draw_arms(arms: Arms, folder: Path) -> None:
    figure = Figure(figsize=(9.5, 1.2 + 0.28 * len(arms)), layout="constrained")
    axes = figure.subplots()
    for row, (arm, same) in enumerate(arms.items()):
        colours = {"nearest": WEIGHT, "shuffle": ARCHITECTURE}
        colour = MUTED if "permuted" in arm else colours.get(str(arm[0]), MUTED)
        skips = skips_of(same)
        apart = np.linspace(-0.2, 0.2, len(skips)) if len(skips) > 1 else np.zeros(1)
        axes.plot(skips, row + apart, "o", color=colour, ms=4, alpha=0.6)
        axes.plot(np.mean(skips), row, "|", color=colour, ms=16, mew=3)
    axes.axvline(float(8 * chance_of_a_skip(SPACE)), color=MUTED, lw=1, ls="--")
    axes.set(xlim=(-0.3, 8.3), xlabel="skips of 8; dots: seeds; bars: means; dashed: chance")
    axes.set_yticks(range(len(arms)), list(map(named, arms)), fontsize=8)
    axes.invert_yaxis()
    canvas.save(figure, folder / "arms.png")


@canvas.styled
def _draw_operations(arms: Arms, folder: Path) -> None:
    kinds = [name for name in SPACE.primitives("normal")[0] if name != "none"]
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    for panel, decoder in zip(figure.subplots(1, 2, sharey=True), DECODERS, strict=True):
        for (ratio, style), (target, colour) in product(
            zip(ratios_of(arms), ("-", ":"), strict=False),
            (("image", WEIGHT), ("permuted", MUTED)),
        ):
            same = arms.get(arm_of(decoder, ratio, target))
            if same:
                counts = Counter(
                    edge["primitive"] for r in same for edge in r["genotype"]["normal"]["edges"]
                )
                label = f"{'signal' if target == 'image' else 'null target'}, ratio {ratio:g}"
                means = [counts[kind] / len(same) for kind in kinds]
                panel.plot(kinds, means, style, color=colour, marker="o", label=label)
                panel.legend()
        panel.axhline(8 / len(kinds), color=MUTED, lw=1, ls="--")
        panel.set(title=decoder, ylabel="edges of 8, mean over seeds; dashed: chance")
        panel.tick_params(axis="x", rotation=40)
    canvas.save(figure, folder / "operations.png")


@canvas.styled
def _draw_sparse(arms: Arms, folder: Path) -> None:
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    by_step, by_second = figure.subplots(1, 2, sharey=True)
    for (mode, colour), (ratio, style) in product(
        (("dense", WEIGHT), ("sparse", ARCHITECTURE)),
        zip(ratios_of(arms), ("-", ":"), strict=False),
    ):
        same = arms.get(arm_of("hierarchical", ratio, mode=mode))
        if same:
            steps, losses = mean_course(same, "course", "held_out_loss")
            clock = np.interp(steps, *mean_course(same, "metrics", "seconds"))
            for panel, places in ((by_step, steps), (by_second, clock)):
                label = f"{mode}, ratio {ratio:g}"
                panel.plot(places, losses, style, color=colour, lw=2, label=label)
                panel.legend()
    by_step.set(xlabel="step", ylabel="held-out loss, mean over seeds")
    by_second.set(xlabel="seconds by the clock, whatever ran beside")
    canvas.save(figure, folder / "sparse.png")
