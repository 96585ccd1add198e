import ast
import inspect
import sys
from itertools import combinations
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.transforms import Bbox

from mae_nas.genotype import PUBLISHED, CellGenotype, Edge, Genotype
from mae_nas.runs import canvas, cell_layout, drawing, plots, reconstructions
from mae_nas.runs.canvas import human, save, spread
from mae_nas.runs.cell_layout import arrange
from mae_nas.runs.drawing import draw_cells
from mae_nas.runs.files import remove_unfinished

SKIPS = CellGenotype(
    tuple(Edge("skip_connect", s, t) for t in (2, 3, 4, 5) for s in (0, 1)), (5, 3)
)
LOOSE = CellGenotype(
    (*[Edge("my_long_operation_9x9", 0, 1)] * 3, Edge("noise", 1, 7)), (7,), inputs=1
)
CELLS = {"skips": Genotype(SKIPS, LOOSE), **PUBLISHED}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure about to be saved, laid out; nothing is written."""
    kept: list[Figure] = []

    def keep(figure: Figure, path: Path) -> list[Path]:
        FigureCanvasAgg(figure).draw()
        kept.append(figure)
        return [path]

    monkeypatch.setattr(canvas, "save", keep)
    return kept


def overlap(one: Bbox, other: Bbox) -> bool:
    return bool(one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1)


def test_spread_is_the_nearest_order_preserving_arrangement() -> None:
    random = np.random.default_rng(0)
    for size in (1, 2, 5, 9):
        wanted, gaps = 3 * random.random(size), random.random(size - 1)
        shifts = np.concatenate(([0.0], np.cumsum(gaps)))
        free = wanted - shifts
        # Min-max formula of isotonic regression (Robertson et al., 1988).
        expected = [
            max(min(free[a : b + 1].mean() for b in range(at, size)) for a in range(at + 1))
            for at in range(size)
        ]
        np.testing.assert_allclose(spread(list(wanted), list(gaps)), expected + shifts, atol=1e-12)
    assert spread([], []) == []


@pytest.mark.parametrize(
    ("primitive", "words"),
    [
        ("sep_conv_3x3", "sep 3×3"),
        ("dil_conv_5x5", "dil 5×5"),
        ("max_pool_3x3", "max pool 3×3"),
        ("skip_connect", "skip"),
        ("conv_7x1_1x7", "conv 7×1 1×7"),
        ("my_own", "my own"),
    ],
)
def test_human_writes_operations_as_people_do(primitive: str, words: str) -> None:
    assert human(primitive) == words


def test_save_writes_both_formats_or_the_one_asked_for(tmp_path: Path) -> None:
    figure = Figure(figsize=(1, 1))
    assert save(figure, tmp_path / "new" / "a") == [tmp_path / "new/a.png", tmp_path / "new/a.svg"]
    assert save(figure, tmp_path / "b.svg") == [tmp_path / "b.svg"]
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == ["a.png", "a.svg", "b.svg"]


class FullDisk(Figure):
    def savefig(self, fname: Path, **_: object) -> None:
        fname.write_bytes(b"half a pict")
        raise OSError("disk full")


class SweptMidway(Figure):
    """Stands for a killed save and the cleaning at the run's next start."""

    def savefig(self, fname: Path, **_: object) -> None:
        fname.write_bytes(b"half a pict")
        remove_unfinished(fname.parent.parent)
        self.left = list(fname.parent.iterdir())
        raise OSError("killed")


def test_save_leaves_nothing_half_written_that_is_never_swept(tmp_path: Path) -> None:
    figure = SweptMidway()
    with pytest.raises(OSError, match="killed"):
        save(figure, tmp_path / "plots" / "a.png")
    assert figure.left == []


def test_save_keeps_the_old_picture_when_writing_fails(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        save(FullDisk(), tmp_path / "a.png")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


def test_pictures_are_the_same_bytes_whatever_the_users_style(tmp_path: Path) -> None:
    draw_cells(PUBLISHED["DARTS_V2"], tmp_path / "a")
    with mpl.rc_context({"text.usetex": True, "font.size": 40, "savefig.dpi": 7}):
        before = dict(mpl.rcParams)
        draw_cells(PUBLISHED["DARTS_V2"], tmp_path / "b")
        assert dict(mpl.rcParams) == before
    for end in (".png", ".svg"):
        assert (tmp_path / f"a{end}").read_bytes() == (tmp_path / f"b{end}").read_bytes()


@pytest.mark.parametrize("module", [canvas, cell_layout, drawing, plots, reconstructions])
def test_drawing_asks_for_neither_pyplot_nor_torch(module: ModuleType) -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert {name.split(".")[0] for name in names} <= {
        *sys.stdlib_module_names,
        "matplotlib",
        "numpy",
        "mae_nas",
    }
    assert not any("pyplot" in name for name in names)


@pytest.mark.parametrize("genotype", CELLS.values(), ids=CELLS)
def test_layout_flows_to_the_right_without_collisions(genotype: Genotype) -> None:
    for cell in genotype.cells.values():
        placed = arrange(cell)
        for edge in cell.edges:
            assert placed.column[edge.source] < placed.column[edge.target]
        assert all(placed.column[node] < placed.column[placed.output] for node in cell.concat)
        for one, other in combinations(placed.y, 2):
            room = (placed.height(one) + placed.height(other)) / 2
            assert one[1] != other[1] or abs(placed.y[one] - placed.y[other]) > room
        crossed = {
            (source, column)
            for source, target in [(edge.source, edge.target) for edge in cell.edges]
            + [(node, placed.output) for node in cell.concat]
            for column in range(placed.column[source], placed.column[target])
        }
        assert crossed <= set(placed.y)


@pytest.mark.parametrize("genotype", CELLS.values(), ids=CELLS)
def test_cells_show_every_operation_once_in_a_box_of_its_own(
    genotype: Genotype, figures: list[Figure]
) -> None:
    draw_cells(genotype, "unused")
    axes = figures[0].axes[0]
    boxes = [p.get_window_extent() for p in axes.patches if isinstance(p, FancyBboxPatch)]
    assert not any(overlap(one, other) for one, other in combinations(boxes, 2))
    texts = [(text.get_text(), text.get_window_extent()) for text in axes.texts]
    framed = [text for text, extent in texts if any(_within(extent, box) for box in boxes)]
    operations = [human(e.primitive) for cell in genotype.cells.values() for e in cell.edges]
    nodes = [
        f"{t - c.inputs}" for c in genotype.cells.values() for t in {e.target for e in c.edges}
    ]
    inputs = [f"$c_{{k-{c.inputs - i}}}$" for c in genotype.cells.values() for i in range(c.inputs)]
    assert sorted(framed) == sorted(operations + nodes + inputs + ["$c_{k}$"] * 2)
    free = [extent for text, extent in texts if text not in framed]
    assert not any(overlap(one, other) for one in free for other in boxes)
    assert not any(overlap(one, other) for one, other in combinations(free, 2))


def _within(inner: Bbox, outer: Bbox) -> bool:
    return bool(
        outer.x0 <= inner.x0
        and inner.x1 <= outer.x1
        and outer.y0 <= inner.y0
        and inner.y1 <= outer.y1
    )
