"""Where the parts of a drawn cell stand.

Nodes stand in columns by their longest path from the inputs. A state needed further right than the
next column crosses the columns between in a lane, so that no wire runs through a box.
"""

from dataclasses import dataclass, field
from itertools import pairwise

from mae_nas.genotype import CellGenotype, Edge
from mae_nas.runs.canvas import spread

# Inches.
NODE, PITCH = 0.4, 0.35
_LANE, _GAP = 0.12, 0.3
_SWEEPS = 12

# What stands in a column: (node, column) is the node in its own column, and its lane in later ones.
Item = tuple[int, int]


@dataclass
class Layout:
    """Where everything of one cell stands; y grows downwards."""

    cell: CellGenotype
    column: dict[int, int]
    feeds: dict[int, list[Edge]]
    reach: dict[int, int]
    y: dict[Item, float] = field(default_factory=dict)

    @property
    def output(self) -> int:
        """The output is drawn as one more node."""
        return max(self.column)

    def items(self, column: int) -> list[Item]:
        """Nodes and lanes of a column."""
        return [
            (node, column)
            for node, own in self.column.items()
            if own == column or own < column < self.reach.get(node, 0)
        ]

    def height(self, item: Item) -> float:
        """Height of a node with its operations, or of a lane."""
        node, column = item
        if column > self.column[node]:
            return _LANE
        rows = len(self.cell.concat) / 2 if node == self.output else len(self.feeds.get(node, ()))
        return max(NODE, rows * PITCH)

    def tail(self, node: int, column: int) -> Item:
        """What carries the state of `node` to the doorstep of `column`."""
        return node, max(column - 1, self.column[node])

    def sources(self, item: Item) -> list[Item]:
        """What an item is joined to in the column before."""
        node, column = item
        if column > self.column[node]:
            return [self.tail(node, column)]
        if node == self.output:
            return [self.tail(source, column) for source in self.cell.concat]
        return [self.tail(edge.source, column) for edge in self.feeds.get(node, ())]

    def extent(self) -> tuple[float, float]:
        """Top and bottom of an arranged cell."""
        halves = {item: self.height(item) / 2 for item in self.y}
        top = min(y - halves[item] for item, y in self.y.items())
        return top, max(y + halves[item] for item, y in self.y.items())


def arrange(cell: CellGenotype) -> Layout:
    """Columns by longest path; then rows by repeated averaging over what each item is joined to."""
    feeds: dict[int, list[Edge]] = {}
    for edge in cell.edges:
        feeds.setdefault(edge.target, []).append(edge)
    column = dict.fromkeys(range(cell.inputs), 0)
    for node in sorted(feeds):
        column[node] = 1 + max(column[edge.source] for edge in feeds[node])
    output = max(column) + 1
    column[output] = 1 + max(column.values())
    reach: dict[int, int] = {}
    joins = [(edge.source, edge.target) for edge in cell.edges]
    for source, target in joins + [(node, output) for node in cell.concat]:
        reach[source] = max(reach.get(source, 0), column[target])
    layout = Layout(cell, column, feeds, reach)
    _settle(layout)
    return layout


def _settle(layout: Layout) -> None:
    columns = [layout.items(column) for column in range(layout.column[layout.output] + 1)]
    joined: dict[Item, list[Item]] = {item: [] for items in columns for item in items}
    for item in list(joined):
        for source in layout.sources(item):
            joined[item].append(source)
            joined[source].append(item)
    layout.y.update({item: float(row) for items in columns for row, item in enumerate(items)})
    for _ in range(_SWEEPS):
        for items in columns + columns[::-1]:
            _place(layout, items, joined)


def _place(layout: Layout, items: list[Item], joined: dict[Item, list[Item]]) -> None:
    wanted = {
        item: sum(layout.y[other] for other in joined[item]) / max(1, len(joined[item]))
        for item in items
    }
    if items[0][1] > 0:  # the inputs keep their order
        items.sort(key=lambda item: wanted[item])
    heights = [layout.height(item) for item in items]
    gaps = [(above + below) / 2 + _GAP for above, below in pairwise(heights)]
    layout.y.update(zip(items, spread([wanted[item] for item in items], gaps), strict=True))
