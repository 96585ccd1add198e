"""Heat maps of the mixture weights, with the derived choice outlined."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from mae_nas.genotype import CellGenotype, Genotype
from mae_nas.runs import canvas

Joins = Sequence[tuple[int, int]]

_WIDE, _TALL = 0.96, 0.92  # of a tile; one unit of the axes is a column or a row


@canvas.styled
def plot_alpha_heatmaps(
    scores: Mapping[str, ArrayLike],
    edges: Joins,
    primitives: Mapping[str, canvas.Primitives],
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
        _draw(axes, values, edges, primitives[kind], genotype.cells[kind])
        axes.set_title(canvas.TITLES[kind], pad=12)
    figure.supxlabel("mixture weight; outlined: kept in the genotype", fontsize=10)
    return canvas.save(figure, Path(folder) / "alpha")


def _is_shared(primitives: canvas.Primitives) -> bool:
    return len(set(map(tuple, primitives))) == 1


def _draw(
    axes: Axes,
    values: NDArray[np.float64],
    edges: Joins,
    table: canvas.Primitives,
    cell: CellGenotype,
) -> None:
    # Half-way up the scale is the uniform weight; a search that has hardly moved stays near it.
    moved = values - 1 / values.shape[1]
    shades = 0.47 + 0.43 * moved / max(float(abs(moved).max()), 0.02 / values.shape[1])
    # A gap parts the edges of one node from those of the next.
    tops = np.asarray([row + 0.25 * (edge[1] - edges[0][1]) for row, edge in enumerate(edges)])
    heads = [canvas.human(name) for name in table[0]] if _is_shared(table) else []
    kept = {(edge.source, edge.target, edge.primitive) for edge in cell.edges}
    for row, (edge, names) in enumerate(zip(edges, table, strict=True)):
        for column, name in enumerate(names):
            fill, corner = to_hex(colormaps["Blues"](shades[row, column])), (column, tops[row])
            axes.add_patch(Rectangle(corner, _WIDE, _TALL, facecolor=fill))
            if (*edge, name) in kept:
                hue = canvas.ARCHITECTURE
                axes.add_patch(
                    Rectangle(corner, _WIDE, _TALL, fill=False, ec=hue, lw=2.2, zorder=2)
                )
            share = f"{values[row, column]:.3f}"
            label = share if heads else f"{canvas.human(name)}  {share}"
            x, y, ink = column + _WIDE / 2, tops[row] + _TALL / 2, canvas.ink_on(fill)
            axes.text(x, y, label, ha="center", va="center", color=ink, fontsize=9)
    labels = [" → ".join(canvas.node_name(node, cell.inputs) for node in edge) for edge in edges]
    axes.set_yticks(tops + _TALL / 2, labels, color=canvas.INK)
    axes.set_xticks(np.arange(len(heads)) + 0.3, heads, rotation=30, ha="left", color=canvas.INK)
    axes.set(xlim=(-0.05, max(map(len, table))), ylim=(tops[-1] + 1.0, -0.08))
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
