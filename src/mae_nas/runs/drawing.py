"""Pictures of cells: data flow from left to right, every operation in a box of its own.

A node is a tall box; the operations that feed it are stacked to its left, so that labels cannot
overlap however many edges join two nodes.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve

from mae_nas.genotype import CellGenotype, Edge, Genotype
from mae_nas.runs.canvas import (
    FAINT,
    INK,
    MUTED,
    colour,
    human,
    ink_on,
    node_name,
    save,
    styled,
)
from mae_nas.runs.layout import NODE, PITCH, Item, Layout, arrange

# Inches, which are also the units of the axes.
_PILL = 0.27
_LINK, _CURVES, _MARGIN, _CAPTION = 0.2, 0.95, 0.3, 0.5
TITLES = {"normal": "Normal cell", "reduce": "Reduction cell"}


class _Pen:
    """Draws one arranged cell with its upper left corner at (left, top)."""

    def __init__(self, axes: Axes, layout: Layout, left: float, top: float, pill: float) -> None:
        self.axes, self.layout = axes, layout
        self.left, self.top, self.pill = left, top - layout.extent()[0], pill

    def start(self, column: int) -> float:
        """Where a column begins: the left side of its operations."""
        before = NODE + _CURVES + (column - 1) * (self.pill + _LINK + NODE + _CURVES)
        return self.left + (before if column else 0.0)

    def box_x(self, node: int) -> float:
        """Left side of a node's box."""
        fed = node in self.layout.feeds
        return self.start(self.layout.column[node]) + (self.pill + _LINK if fed else 0.0)

    def box_y(self, item: Item) -> float:
        """Centre of an item."""
        return self.top + self.layout.y[item]

    def draw(self) -> None:
        """Wires first, boxes over them."""
        layout = self.layout
        for node, last in layout.reach.items():
            for column in range(layout.column[node] + 1, last):
                self._lane(node, column)
        for node in layout.column:
            self._node(node)
        self._output()

    def _leave(self, node: int, column: int) -> tuple[float, float]:
        """The point from which a wire of `node` enters `column`."""
        item = self.layout.tail(node, column)
        own = item[1] == self.layout.column[node]
        x = self.box_x(node) + NODE if own else self.start(item[1]) + self.pill + _LINK + NODE
        return x, self.box_y(item)

    def _lane(self, node: int, column: int) -> None:
        x, y = self.start(column), self.box_y((node, column))
        self._wire(self._leave(node, column), (x, y), MUTED)
        self.axes.plot([x, x + self.pill + _LINK + NODE], [y, y], color=MUTED, lw=1.3, snap=False)

    def _node(self, node: int) -> None:
        layout = self.layout
        item = (node, layout.column[node])
        x, y, height = self.box_x(node), self.box_y(item), layout.height(item)
        edges = layout.feeds.get(node, [])
        edges = sorted(edges, key=lambda edge: layout.y[layout.tail(edge.source, item[1])])
        for row, edge in enumerate(edges):
            self._operation(edge, item[1], y + (row - (len(edges) - 1) / 2) * PITCH)
        is_output = node == layout.output
        name = "$c_{k}$" if is_output else node_name(node, layout.cell.inputs)
        face = "white" if node < layout.cell.inputs or is_output else FAINT
        self._box((x, y), (NODE, height - 0.06), face, INK, name)

    def _operation(self, edge: Edge, column: int, y: float) -> None:
        hue, x = colour(edge.primitive), self.start(column)
        self._wire(self._leave(edge.source, column), (x, y), hue)
        self.axes.plot([x + self.pill, x + self.pill + _LINK], [y, y], color=hue, lw=1.3)
        self._box((x, y), (self.pill, _PILL), hue, hue, human(edge.primitive))

    def _output(self) -> None:
        layout = self.layout
        node, column = layout.output, layout.column[layout.output]
        states = sorted(
            layout.cell.concat, key=lambda source: layout.y[layout.tail(source, column)]
        )
        for row, source in enumerate(states):
            y = self.box_y((node, column)) + (row - (len(states) - 1) / 2) * PITCH / 2
            self._wire(self._leave(source, column), (self.start(column), y), MUTED)

    def _wire(self, begin: tuple[float, float], end: tuple[float, float], hue: str) -> None:
        middle = (begin[0] + end[0]) / 2
        points = [begin, (middle, begin[1]), (middle, end[1]), end]
        curve = Curve(points, [Curve.MOVETO, *[Curve.CURVE4] * 3])
        self.axes.add_patch(PathPatch(curve, fill=False, edgecolor=hue, lw=1.3, zorder=1))

    def _box(
        self, at: tuple[float, float], size: tuple[float, float], face: str, edge: str, text: str
    ) -> None:
        (x, y), (width, height) = at, size
        style = f"round,pad=0,rounding_size={min(0.1, height / 2)}"
        corner = (x, y - height / 2)
        box = FancyBboxPatch(
            corner, width, height, boxstyle=style, facecolor=face, edgecolor=edge, zorder=2
        )
        self.axes.add_patch(box)
        self.axes.text(
            x + width / 2, y, text, ha="center", va="center", color=ink_on(face), zorder=3
        )


def _caption(kind: str, cell: CellGenotype) -> str:
    skips = sum(edge.primitive == "skip_connect" for edge in cell.edges)
    stride = "; stride 2 where an operation reads an input" if kind == "reduce" else ""
    return f"{len(cell.edges)} operations, skips: {skips}{stride}"


@styled()
def draw_cells(
    genotype: Genotype,
    path: str | Path,
    title: str | None = None,
    kinds: Sequence[str] = ("normal", "reduce"),
) -> list[Path]:
    """Draw a genotype's cells below each other; no system binary is needed.

    Args:
        genotype: what to draw.
        path: a name ending in .png or .svg, or without suffix to write both.
        title: a line above the cells.
        kinds: which cells, from top to bottom.

    Returns:
        The files written.
    """
    figure = Figure()
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    y, width = _MARGIN, 7.0
    labels = [human(edge.primitive) for kind in kinds for edge in genotype.cells[kind].edges]
    pill = 0.2 + 0.083 * max(map(len, labels))
    if title:
        axes.text(_MARGIN, y, title, va="center", fontsize=14, weight="bold", parse_math=False)
        y += _CAPTION
    for kind in kinds:
        cell = genotype.cells[kind]
        layout = arrange(cell)
        axes.text(_MARGIN, y, TITLES[kind], va="center", fontsize=12, weight="bold")
        axes.text(_MARGIN + 1.6, y, _caption(kind, cell), va="center", color=MUTED)
        pen = _Pen(axes, layout, _MARGIN, y + _CAPTION / 2, pill)
        pen.draw()
        top, bottom = layout.extent()
        width = max(width, pen.start(layout.column[layout.output]) + NODE + _MARGIN)
        y += bottom - top + 2 * _CAPTION
    y -= _CAPTION / 2
    figure.set_size_inches(width, y)
    axes.set(xlim=(0, width), ylim=(y, 0))
    return save(figure, path)
