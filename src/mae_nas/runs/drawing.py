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

from mae_nas.genotype import CellGenotype, Genotype
from mae_nas.runs import canvas
from mae_nas.runs.canvas import FAINT, INK, MUTED, colour, human
from mae_nas.runs.cell_layout import NODE, Item, Layout, arrange

# Inches, which are also the units of the axes.
_PILL = 0.27
_LINK, _CURVES, _MARGIN, _CAPTION = 0.2, 0.95, 0.3, 0.5

Point = tuple[float, float]


class _Pen:
    """Draws one arranged cell, its upper side at `top`; operations are `pill` wide."""

    def __init__(self, axes: Axes, layout: Layout, top: float, pill: float) -> None:
        self.axes, self.layout, self.top, self.pill = axes, layout, top, pill

    def start(self, column: int) -> float:
        """Where a column begins: the left side of its operations."""
        return _MARGIN + column * (self.pill + _LINK + NODE + _CURVES) - self.pill - _LINK

    def left(self, item: Item) -> float:
        """Left side of a node's box: behind its operations, which the output has none of."""
        node, column = item
        return self.start(column) + (0 if node == self.layout.output else self.pill + _LINK)

    def draw(self, inputs: int) -> None:
        """Draw all nodes and lanes and what enters them."""
        layout = self.layout
        for item in layout.entries:
            node, x, y = item[0], self.left(item), self.top + layout.y[item]
            self._enter(item)
            if layout.is_lane(item):
                self._line((self.start(item[1]), y), x + NODE, MUTED)
                continue
            name = "$c_{k}$" if node == layout.output else canvas.node_name(node, inputs)
            face = FAINT if inputs <= node < layout.output else "white"
            self._box((x, y), (NODE, layout.height(item) - 0.06), face, INK, name)

    def _enter(self, item: Item) -> None:
        layout, start = self.layout, self.start(item[1])
        first = self.top + layout.y[item] - (len(layout.entries[item]) - 1) / 2 * layout.pitch(item)
        for row, (source, operation) in enumerate(layout.entries[item]):
            hue, y = colour(operation) if operation else MUTED, first + row * layout.pitch(item)
            self._wire((self.left(source) + NODE, self.top + layout.y[source]), (start, y), hue)
            if operation:
                self._line((start + self.pill, y), self.left(item), hue)
                self._box((start, y), (self.pill, _PILL), hue, hue, human(operation))

    def _line(self, begin: Point, end: float, hue: str) -> None:
        x, y = begin
        self.axes.plot([x, end], [y, y], color=hue, lw=1.3, snap=False)

    def _wire(self, begin: Point, end: Point, hue: str) -> None:
        middle = (begin[0] + end[0]) / 2
        points = [begin, (middle, begin[1]), (middle, end[1]), end]
        curve = Curve(points, [Curve.MOVETO, *[Curve.CURVE4] * 3])
        self.axes.add_patch(PathPatch(curve, fill=False, edgecolor=hue, lw=1.3, zorder=1))

    def _box(self, at: Point, size: Point, face: str, edge: str, text: str) -> None:
        (x, y), (width, height) = at, size
        box = FancyBboxPatch((x, y - height / 2), width, height, fc=face, ec=edge, zorder=2)
        box.set_boxstyle("round", pad=0, rounding_size=min(0.1, height / 2))
        self.axes.add_patch(box)
        middle, ink = x + width / 2, canvas.ink_on(face)
        self.axes.text(middle, y, text, ha="center", va="center", color=ink, zorder=3)


def _caption(kind: str, cell: CellGenotype) -> str:
    # By name: a genotype may come without a space, whose primitives say themselves what is a skip.
    skips = sum(edge.primitive == "skip_connect" for edge in cell.edges)
    stride = "; stride 2 where an operation reads an input" if kind == "reduce" else ""
    return f"operations: {len(cell.edges)}, skips: {skips}{stride}"


@canvas.styled
def draw_cells(
    genotype: Genotype, path: str | Path, kinds: Sequence[str] = ("normal", "reduce")
) -> list[Path]:
    """Draw the cells `kinds` below each other; `path` as for `canvas.save`."""
    figure = Figure()
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    y, width = _MARGIN, 7.0
    labels = [human(edge.primitive) for kind in kinds for edge in genotype.cells[kind].edges]
    pill = 0.2 + 0.083 * max(map(len, labels))
    for kind in kinds:
        cell = genotype.cells[kind]
        layout = arrange(cell)
        axes.text(_MARGIN, y, canvas.TITLES[kind], va="center", fontsize=12, weight="bold")
        axes.text(_MARGIN + 1.6, y, _caption(kind, cell), va="center", color=MUTED)
        pen = _Pen(axes, layout, y + _CAPTION / 2, pill)
        pen.draw(cell.inputs)
        width = max(width, pen.start(layout.column[layout.output]) + NODE + _MARGIN)
        y += layout.bottom() + 2 * _CAPTION
    y -= _CAPTION / 2
    figure.set_size_inches(width, y)
    axes.set(xlim=(0, width), ylim=(y, 0))
    return canvas.save(figure, path)
