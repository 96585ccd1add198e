"""Pictures of a run, as PNG and SVG: cells, mixture weights at the end and over time, losses.

Every function takes numbers, or rows as read back from a file, and a folder.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from mae_nas.genotype import CellGenotype, Genotype
from mae_nas.runs import canvas
from mae_nas.runs.canvas import ARCHITECTURE, FAINT, INK, MUTED, WEIGHT, colour, human
from mae_nas.runs.drawing import draw_cells

Rows = Sequence[Mapping[str, Any]]
Joins = Sequence[tuple[int, int]]
Primitives = Sequence[Sequence[str]]
Series = NDArray[np.float64]

_STEPS = {
    "weight_loss": ("weight step", WEIGHT),
    "arch_loss": ("α step", ARCHITECTURE),
}
_FEW = 15  # so few points are marked
_WIDE, _TALL = 0.96, 0.92  # of a tile; one unit of the axes is a column or a row


def plot_cells(genotype: Genotype, folder: str | Path) -> list[Path]:
    """Draw both cells in one picture (`cells`) and each alone (`cell_normal`, `cell_reduce`)."""
    written = draw_cells(genotype, Path(folder) / "cells")
    for kind in genotype.cells:
        written += draw_cells(genotype, Path(folder) / f"cell_{kind}", kinds=(kind,))
    return written


@canvas.styled
def plot_alpha_heatmaps(
    scores: Mapping[str, ArrayLike],
    edges: Joins,
    primitives: Mapping[str, Primitives],
    genotype: Genotype,
    folder: str | Path,
) -> list[Path]:
    """Draw the mixture weight of every operation on every edge; what `genotype` keeps is outlined.

    Args:
        scores: mixture weights in [0, 1], (edges, operations), for each kind of cell.
        edges: (source, target) of each row.
        primitives: the operations on each edge, for each kind; edges may differ, as in S1 and S2.
        genotype: the choice to outline.
        folder: where `alpha.png` and `alpha.svg` go.
    """
    weights = {kind: np.asarray(values, float) for kind, values in scores.items()}
    widths = [
        0.9 + values.shape[1] * (0.72 if _is_shared(primitives[kind]) else 1.5)
        for kind, values in weights.items()
    ]
    width, height = max(8.0, sum(widths) + 0.6), 0.36 * len(edges) + 1.7
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, len(weights), squeeze=False, width_ratios=widths)[0]
    for axes, (kind, values) in zip(panels, weights.items(), strict=True):
        _draw_tiles(axes, values, edges, primitives[kind], genotype.cells[kind])
        axes.set_title(canvas.TITLES[kind], pad=12)
    note = "mixture weight, shaded by its distance from uniform; outlined: kept (none never is)"
    figure.supxlabel(note, fontsize=10)
    return canvas.save(figure, Path(folder) / "alpha")


@canvas.styled
def plot_alpha_history(
    readings: Rows,
    primitives: Mapping[str, Primitives],
    folder: str | Path,
    chance: Mapping[str, tuple[float, float]],
) -> list[Path]:
    """Draw each operation's mixture weight and the skip counts over the epochs.

    Args:
        readings: as `genotypes.jsonl` holds them: `epoch`, `scores` and `skips` of each.
        primitives: the operations on each edge, for each kind of cell.
        folder: where `alpha_history.png` and `.svg` go.
        chance: lowest and highest skip count of the middle 95 % of noise, for each kind.
    """
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    grid = figure.subplots(2, len(primitives), squeeze=False, sharex="all", height_ratios=[2, 1])
    epochs = _numbers(reading["epoch"] for reading in readings)
    lines: dict[str, Line2D] = {}
    for column, (kind, names) in enumerate(primitives.items()):
        upper, lower = grid[:, column]
        weights = _numbers(reading["scores"][kind] for reading in readings)
        lines |= _draw_weights(upper, epochs, weights, names)
        upper.set_title(canvas.TITLES[kind])
        skips = _numbers(reading["skips"][kind] for reading in readings)
        _draw_skips(lower, epochs, skips, chance[kind])
    grid[0, 0].set_xlim(0.0, 1.03 * float(epochs.max()))
    grid[0, 0].set_ylabel("mixture weight, mean over edges")
    grid[1, 0].set_ylabel("skips kept")
    figure.legend(lines.values(), map(human, lines), loc="outside right upper")
    return canvas.save(figure, Path(folder) / "alpha_history")


@canvas.styled
def plot_losses(
    rows: Rows, readings: Rows, yardsticks: Mapping[str, float], folder: str | Path
) -> list[Path]:
    """Draw the masked loss of both steps and on the held-out images, beside the yardsticks.

    Args:
        rows: as `metrics.csv` holds them: `epoch`, `weight_loss`, `arch_loss`; an empty or missing
            value is passed over.
        readings: as `genotypes.jsonl` holds them: `epoch` and `held_out_loss` of each.
        yardsticks: what trivial predictions lose, by name.
        folder: where `losses.png` and `.svg` go.
    """
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    axes = figure.subplots()
    shown = list(yardsticks.values())
    for key, (label, hue) in _STEPS.items():
        kept = [row for row in rows if row.get(key) not in ("", None)]
        if not kept:  # a pretraining has no α
            continue
        epochs = _numbers(row["epoch"] for row in kept)
        losses = _numbers(row[key] for row in kept)
        smooth = _running_median(losses)
        axes.plot(epochs, losses, color=hue, alpha=0.2, lw=0.8)
        axes.plot(epochs, smooth, color=hue, label=label, marker=_marker(epochs))
        shown += list(smooth)
    epochs = _numbers(reading["epoch"] for reading in readings)
    held_out = _numbers(reading["held_out_loss"] for reading in readings)
    axes.plot(epochs, held_out, "o", color=INK, ms=4, label="held-out images")
    shown = [loss for loss in [*shown, *held_out] if np.isfinite(loss)] or [1.0]
    axes.set_xlim(left=0.0)
    # A first raw loss may lie far above everything else: the frame fits what is smoothed.
    axes.set_ylim(0.0, 1.08 * max(shown))
    _draw_yardsticks(axes, yardsticks)
    axes.set(xlabel="epoch", ylabel="error on hidden pixels", title="Masked loss")
    axes.legend(loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.1))
    return canvas.save(figure, Path(folder) / "losses")


def _numbers(values: Iterable[object]) -> Series:
    return np.asarray(list(values)).astype(float)


def _marker(points: Series) -> str:
    return "o" if len(points) <= _FEW else ""


def _running_median(values: Series) -> Series:
    """Median over a twentieth of the curve around each point: one wild step does not bend it."""
    reach = len(values) // 40
    parts = (values[max(0, at - reach) : at + reach + 1] for at in range(len(values)))
    return np.asarray([float(np.median(part)) for part in parts])


def _is_shared(primitives: Primitives) -> bool:
    return len(set(map(tuple, primitives))) == 1


def _draw_tiles(
    axes: Axes,
    values: Series,
    edges: Joins,
    table: Primitives,
    cell: CellGenotype,
) -> None:
    # Half-way up the scale is the uniform weight; a search that has hardly moved stays near it.
    moved = values - 1 / values.shape[1]
    shades = 0.47 + 0.43 * moved / max(float(abs(moved).max()), 0.02 / values.shape[1])
    # A gap parts the edges of one node from those of the next.
    tops = np.asarray([row + 0.25 * (edge[1] - edges[0][1]) for row, edge in enumerate(edges)])
    heads = [human(name) for name in table[0]] if _is_shared(table) else []
    kept = {(edge.source, edge.target, edge.primitive) for edge in cell.edges}
    for row, (edge, names) in enumerate(zip(edges, table, strict=True)):
        for column, name in enumerate(names):
            fill, corner = to_hex(colormaps["Blues"](shades[row, column])), (column, tops[row])
            axes.add_patch(Rectangle(corner, _WIDE, _TALL, facecolor=fill))
            if (*edge, name) in kept:
                hue = ARCHITECTURE
                axes.add_patch(
                    Rectangle(corner, _WIDE, _TALL, fill=False, ec=hue, lw=2.2, zorder=2)
                )
            share = f"{values[row, column]:.3f}"
            label = share if heads else f"{human(name)}  {share}"
            x, y, ink = column + _WIDE / 2, tops[row] + _TALL / 2, canvas.ink_on(fill)
            axes.text(x, y, label, ha="center", va="center", color=ink, fontsize=9)
    labels = [" → ".join(canvas.node_name(node, cell.inputs) for node in edge) for edge in edges]
    axes.set_yticks(tops + _TALL / 2, labels, color=INK)
    axes.set_xticks(np.arange(len(heads)) + 0.3, heads, rotation=30, ha="left", color=INK)
    axes.set(xlim=(-0.05, max(map(len, table))), ylim=(tops[-1] + 1.0, -0.08))
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)


def _draw_weights(
    axes: Axes, epochs: Series, weights: Series, primitives: Primitives
) -> dict[str, Line2D]:
    """Faint: (readings, edges, operations) one by one. Bold: the mean of each operation."""
    curves: dict[str, list[Series]] = {}
    for edge, names in enumerate(primitives):
        for place, name in enumerate(names):
            curves.setdefault(name, []).append(weights[:, edge, place])
    lines: dict[str, Line2D] = {}
    for name, group in curves.items():
        faint = [np.column_stack((epochs, curve)) for curve in group]
        axes.add_collection(LineCollection(faint, colors=colour(name), alpha=0.16, lw=0.8))
        mean = np.mean(group, axis=0)
        (lines[name],) = axes.plot(epochs, mean, color=colour(name), lw=2, marker=_marker(epochs))
    # Not from zero: in a young search all weights are near the uniform one, and only differ there.
    low, high = float(weights.min()), float(weights.max())
    margin = 0.05 * (high - low) + 1e-6
    axes.set_ylim(low - margin, high + margin)
    axes.axhline(1 / weights.shape[2], color=MUTED, lw=1, ls="--")
    return lines


def _draw_skips(axes: Axes, epochs: Series, skips: Series, chance: tuple[float, float]) -> None:
    axes.axhspan(*chance, color=FAINT, zorder=0)
    axes.set_title("shaded: 95 % of noise", loc="right", fontsize=9, color=MUTED, weight="normal")
    axes.plot(epochs, skips, color=colour("skip_connect"), marker=_marker(epochs))
    axes.set(xlabel="epoch", ylim=(-0.4, max(8.0, float(skips.max())) + 0.6))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _draw_yardsticks(axes: Axes, yardsticks: Mapping[str, float]) -> None:
    """Lines across, named at their right ends; names keep a distance from each other."""
    ordered = sorted(yardsticks.items(), key=lambda item: item[1])
    gap = 0.05 * axes.get_ylim()[1]
    places = canvas.spread([loss for _, loss in ordered], [gap] * (len(ordered) - 1))
    for (name, loss), place in zip(ordered, places, strict=True):
        axes.axhline(loss, color=MUTED, lw=1, ls="--")
        label, right = f"{name} {loss:.3f}", axes.get_yaxis_transform()
        axes.text(1.01, place, label, transform=right, va="center", color=MUTED, fontsize=9)
