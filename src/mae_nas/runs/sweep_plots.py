"""The picture of a sweep: curves over one axis with their spread, heat maps over two."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from mae_nas.runs import canvas
from mae_nas.runs.canvas import ARCHITECTURE, FAINT, MUTED, WEIGHT
from mae_nas.runs.sweeps import SweepRow

REPEATS = "seed"  # the axis that is averaged over
_LONGEST, _MOST_LABELS = 20, 24  # characters; names below a curve
Measure = Callable[[SweepRow], float | None]
PANELS: Mapping[str, Mapping[str, tuple[str, Measure]]] = {
    "search": {
        "skips": ("skips of the normal cell", lambda row: row.run.skips_normal),
        "loss": ("held-out loss", lambda row: row.run.loss),
    },
    "train": {
        "top1": ("top-1 accuracy", lambda row: row.run.top1),
        "loss": ("cross entropy", lambda row: row.run.loss),
    },
    "pretrain": {"loss": ("held-out loss", lambda row: row.run.loss)},
}


@canvas.styled
def plot_sweep(rows: Sequence[SweepRow], folder: Path) -> list[Path]:
    """Draw what matters of each job over the swept axes, as `sweep.png` and `sweep.svg`.

    One axis gives curves, two give heat maps (down and across), further ones a row of heat maps
    for each of their values. Seeds are averaged over.
    """
    values = {axis: _distinct(rows, axis) for axis in rows[0].point}
    axes = [axis for axis in values if axis != REPEATS and len(values[axis]) > 1]
    if len(axes) < 2:
        figure = _curves(rows, axes[0] if axes else REPEATS)
    else:
        figure = _heat_maps(rows, axes, values)
    return canvas.save(figure, folder / "sweep")


def _distinct(rows: Sequence[SweepRow], axis: str) -> list[str]:
    return list(dict.fromkeys(row.point.get(axis, "") for row in rows))


def _curves(rows: Sequence[SweepRow], axis: str) -> Figure:
    """Each panel: every job as a dot, the mean of each value as a line, one sd either way."""
    names = _distinct(rows, axis)
    places = _places(names)
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    shown = PANELS[rows[0].command]
    panels = figure.subplots(1, len(shown), squeeze=False)
    for panel, (key, (title, measure)) in zip(panels[0], shown.items(), strict=True):
        colour = WEIGHT if key == "loss" else ARCHITECTURE
        found = [_measured(_at(rows, {axis: name}), measure) for name in names]
        known = [(p, f) for p, f in zip(places, found, strict=True) if f]
        at = np.array([place for place, _ in known])
        mean = np.array([np.mean(f) for _, f in known])
        spread = np.array([_deviation(f) for _, f in known])
        panel.fill_between(at, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
        panel.plot(at, mean, color=colour, lw=2)
        for place, measured in known:
            panel.plot([place] * len(measured), measured, "o", color=colour, ms=5, alpha=0.7)
        panel.set(title=_titled(key, title, rows), xlabel=axis)
        _label(panel, places, names)
        if key == "skips":
            panel.set_ylim(-0.4, max(8.0, max(mean, default=0)) + 0.6)
            panel.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            chance = [_measured(_at(rows, {axis: name}), _chance) for name in names]
            levels = [(p, np.mean(f)) for p, f in zip(places, chance, strict=True) if f]
            panel.plot(*zip(*levels, strict=True), color=MUTED, lw=1, ls="--", marker="_", ms=14)
    note = "line: mean over seeds; shaded: one standard deviation; dots: jobs"
    note += "; dashed: chance" if "skips" in shown else ""
    figure.supxlabel(note, fontsize=9, color=MUTED)
    return figure


def _chance(row: SweepRow) -> float | None:
    """Skips of cells derived from noise in the job's space."""
    return row.run.chance_normal


def _heat_maps(
    rows: Sequence[SweepRow], axes: Sequence[str], values: Mapping[str, list[str]]
) -> Figure:
    """A line of panels for each value of the axes after the second."""
    (down, across), others = axes[:2], axes[2:]
    facets = [dict(zip(others, p, strict=True)) for p in product(*(values[o] for o in others))]
    wide, tall = 2.0 + 1.15 * len(values[across]), 1.3 + 0.55 * len(values[down])
    shown = PANELS[rows[0].command]
    size = max(8.0, wide * len(shown)), tall * len(facets)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(facets), len(shown), squeeze=False)
    for column, (key, (title, measure)) in enumerate(shown.items()):
        limits = _limits(_measured(rows, measure))
        for facet, panel in zip(facets, panels[:, column], strict=True):
            inside = _at(rows, facet)
            in_cells = key == "skips" and len(set(_measured(inside, _chance))) > 1
            for y, x in product(range(len(values[down])), range(len(values[across]))):
                cell = {**facet, down: values[down][y], across: values[across][x]}
                _draw_cell(panel, (x, y), _at(inside, cell), measure, limits, in_cells)
            named = ", ".join(f"{key}={value}" for key, value in facet.items())
            panel.set_title("\n".join(filter(None, [_titled(key, title, inside), named])))
            panel.set_xticks(range(len(values[across])), list(map(_short, values[across])))
            panel.set_yticks(range(len(values[down])), list(map(_short, values[down])))
            panel.set(xlabel=across, ylabel=down, aspect="auto")
            panel.set(xlim=(-0.5, len(values[across]) - 0.5), ylim=(len(values[down]) - 0.5, -0.5))
            panel.grid(visible=False)
    return figure


def _draw_cell(
    panel: Axes,
    place: tuple[int, int],
    rows: Sequence[SweepRow],
    measure: Measure,
    limits: tuple[float, float],
    with_chance: bool,
) -> None:
    """The mean of a cell's jobs, or why there is none."""
    x, y = place
    found = _measured(rows, measure)
    fill, text = "white", "\n".join(dict.fromkeys(row.status for row in rows))
    if found:
        mean, low, high = float(np.mean(found)), *limits
        fill = to_hex(colormaps["Blues"](0.1 + 0.8 * (mean - low) / max(high - low, 1e-12)))
        text = f"{mean:.3g}" + (f"\n± {_deviation(found):.2g}" if len(found) > 1 else "")
        chance = _measured(rows, _chance) if with_chance else []
        text += f"\nchance {np.mean(chance):.2f}" if chance else ""
    hatch = None if found else "///"
    panel.add_patch(
        Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=fill, edgecolor=FAINT, hatch=hatch)
    )
    ink = canvas.ink_on(fill) if found else MUTED
    panel.text(x, y, text, ha="center", va="center", color=ink, fontsize=9)


def _titled(key: str, title: str, rows: Sequence[SweepRow]) -> str:
    """A skip count is never shown without what chance gives, in each space if there are several."""
    found = [f"{chance:.2f}" for chance in sorted(set(_measured(rows, _chance)))]
    return title if key != "skips" or not found else f"{title} (chance {', '.join(found)})"


def _deviation(found: Sequence[float]) -> float:
    return float(np.std(found, ddof=1)) if len(found) > 1 else 0.0


def _limits(found: Sequence[float]) -> tuple[float, float]:
    return (min(found), max(found)) if found else (0.0, 1.0)


def _at(rows: Sequence[SweepRow], point: Mapping[str, str]) -> list[SweepRow]:
    return [row for row in rows if point.items() <= row.point.items()]


def _measured(rows: Sequence[SweepRow], measure: Measure) -> list[float]:
    found = [measure(row) for row in rows if row.has_result]
    return [value for value in found if value is not None]


def _short(name: str) -> str:
    """The end of a name, where names of files and genotypes differ."""
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


def _label(panel: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Names below their places, of many values every so manieth; upright where they are long."""
    step = -(-len(names) // _MOST_LABELS)
    shown = [_short(name) for name in names[::step]]
    is_long = sum(map(len, shown)) > _LONGEST * 2
    panel.set_xticks(places[::step], shown, rotation=90 if is_long else 0)


def _places(names: Sequence[str]) -> list[float]:
    """Numbers lie where they belong, other values side by side."""
    try:
        return [float(name) for name in names]
    except ValueError:
        return [float(place) for place in range(len(names))]
