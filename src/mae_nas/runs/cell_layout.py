"""Where the parts of a drawn cell stand.

Nodes stand in columns by their longest path from the inputs. A state needed further right than the
next column crosses the columns between in a lane, so that no wire runs through a box.
"""

from dataclasses import dataclass
from itertools import pairwise

from mae_nas.genotype import CellGenotype
from mae_nas.runs.canvas import spread

# Inches.
NODE = 0.4
_PITCH, _LANE, _GAP = 0.35, 0.12, 0.3
_SWEEPS = 12

# (node, column): the node in its own column, its lane in later ones.
Item = tuple[int, int]
# What enters an item: an item of the column before, and the operation ("" for none).
Entry = tuple[Item, str]


@dataclass(frozen=True)
class Layout:
    """Nodes and lanes of one cell, with what enters each from top to bottom; y grows downwards."""

    column: dict[int, int]
    entries: dict[Item, list[Entry]]
    y: dict[Item, float]

    @property
    def output(self) -> int:
        """The output is drawn as one more node."""
        return max(self.column)

    def is_lane(self, item: Item) -> bool:
        """Whether an item is a state on its way to a later column."""
        return item[1] > self.column[item[0]]

    def pitch(self, item: Item) -> float:
        """How far below each other the entries of an item lie."""
        return _PITCH if any(operation for _, operation in self.entries[item]) else _PITCH / 2

    def height(self, item: Item) -> float:
        """Height of a node with its operations, or of a lane."""
        if self.is_lane(item):
            return _LANE
        return max(NODE, len(self.entries[item]) * self.pitch(item))

    def bottom(self) -> float:
        """Lower end of an arranged cell; its upper end is 0."""
        return max(y + self.height(item) / 2 for item, y in self.y.items())


def arrange(cell: CellGenotype) -> Layout:
    """Columns by longest path; then rows by repeated averaging over what each item is joined to."""
    column = dict.fromkeys(range(cell.inputs), 0)
    for edge in sorted(cell.edges, key=lambda edge: edge.target):
        column[edge.target] = max(column.get(edge.target, 0), column[edge.source] + 1)
    output = max(column) + 1
    column[output] = max(column.values()) + 1
    entries: dict[Item, list[Entry]] = {item: [] for item in column.items()}
    joins = [(edge.source, edge.target, edge.primitive) for edge in cell.edges]
    for source, target, operation in joins + [(node, output, "") for node in cell.concat]:
        item = (source, column[source])
        for between in range(column[source] + 1, column[target]):
            entries.setdefault((source, between), [(item, "")])
            item = (source, between)
        entries[target, column[target]].append((item, operation))
    layout = Layout(column, entries, {})
    _settle(layout)
    for entering in entries.values():
        entering.sort(key=lambda entry: layout.y[entry[0]])
    return layout


def _settle(layout: Layout) -> None:
    columns: list[list[Item]] = [[] for _ in range(max(layout.column.values()) + 1)]
    joined = {item: [source for source, _ in into] for item, into in layout.entries.items()}
    for item in sorted(layout.entries):
        layout.y[item] = float(len(columns[item[1]]))
        columns[item[1]].append(item)
        for source, _ in layout.entries[item]:
            joined[source].append(item)
    for _ in range(_SWEEPS):
        for items in columns + columns[::-1]:
            wanted = {
                item: sum(layout.y[other] for other in joined[item]) / max(1, len(joined[item]))
                for item in items
            }
            if items[0][1] > 0:  # the inputs keep their order
                items.sort(key=wanted.__getitem__)
            heights = [layout.height(item) for item in items]
            gaps = [(above + below) / 2 + _GAP for above, below in pairwise(heights)]
            places = spread([wanted[item] for item in items], gaps)
            layout.y.update(zip(items, places, strict=True))
    top = min(y - layout.height(item) / 2 for item, y in layout.y.items())
    layout.y.update({item: y - top for item, y in layout.y.items()})
