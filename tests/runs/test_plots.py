import statistics
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

from mae_nas.genotype import PUBLISHED, CellGenotype, Edge, Genotype
from mae_nas.runs import canvas
from mae_nas.runs.canvas import human
from mae_nas.runs.plots import plot_alpha_heatmaps, plot_alpha_history, plot_cells, plot_losses
from mae_nas.runs.reconstructions import plot_reconstructions

SKIPS = CellGenotype(
    tuple(Edge("skip_connect", s, t) for t in (2, 3, 4, 5) for s in (0, 1)), (5, 3)
)
EDGES = [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
SHARED = [("none", "skip_connect", "sep_conv_3x3")] * 5
MIXED = [("skip_connect", "noise")] * 2 + [("noise", "dil_conv_5x5")] * 3


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


def readings(count: int, operations: int) -> list[dict[str, object]]:
    random = np.random.default_rng(3)
    return [
        {
            "epoch": 1.5 * (index + 1),
            "scores": {
                "normal": random.random((5, operations)).tolist(),
                "reduce": random.random((5, 2)).tolist(),
            },
            "skips": {"normal": index % 4, "reduce": 1},
            "held_out_loss": 0.5 + 0.01 * index,
        }
        for index in range(count)
    ]


def test_plot_cells_draws_both_and_each(tmp_path: Path) -> None:
    written = plot_cells(PUBLISHED["FairDARTS_a"], tmp_path)
    stems = ["cells", "cell_normal", "cell_reduce"]
    assert [path.name for path in written] == [f"{s}{end}" for s in stems for end in canvas.FORMATS]
    svg = (tmp_path / "cell_normal.svg").read_text()
    assert svg.count("<!-- sep 3×3 -->") == 2  # matplotlib notes each text as a comment
    assert "<!-- Reduction cell -->" not in svg


@pytest.mark.parametrize("table", [SHARED, MIXED])
def test_heatmap_shows_all_weights_and_outlines_the_choice(
    table: list[tuple[str, ...]], figures: list[Figure], tmp_path: Path
) -> None:
    size = len(table[0])
    weights = np.linspace(0.01, 0.29, 5 * size).reshape(5, size)
    kept = [(0, 1), (1, 0), (2, 1), (4, size - 1)]
    edges = tuple(Edge(table[row][column], *EDGES[row]) for row, column in kept)
    genotype = Genotype(CellGenotype(edges, (2, 3)), SKIPS)
    plot_alpha_heatmaps({"normal": weights}, EDGES, {"normal": table}, genotype, tmp_path)
    axes = figures[0].axes[0]
    values = [float(text.get_text().split()[-1]) for text in axes.texts]
    np.testing.assert_allclose(values, weights.ravel(), atol=0.005)
    tiles = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    corners = [tile.get_xy() for tile in tiles if tile.get_fill()]
    outlined = [corners.index(tile.get_xy()) for tile in tiles if not tile.get_fill()]
    assert outlined == [row * size + column for row, column in kept]
    named = [human(name) for name in table[0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == (
        named if table is SHARED else []
    )
    assert [label.get_text() for label in axes.get_yticklabels()][3:] == ["$c_{k-1}$ → 1", "0 → 1"]


@pytest.mark.parametrize("count", [1, 17])
def test_history_shows_the_mean_of_the_edges_that_offer_an_operation(
    count: int, figures: list[Figure], tmp_path: Path
) -> None:
    given = readings(count, 3)
    plot_alpha_history(
        given, {"normal": SHARED, "reduce": MIXED}, tmp_path, {"normal": (0, 2), "reduce": (1, 2)}
    )
    normal, reduce, skips, _ = figures[0].axes
    weights = np.asarray([reading["scores"]["reduce"] for reading in given])
    noise = [(w[0, 1] + w[1, 1] + w[2, 0] + w[3, 0] + w[4, 0]) / 5 for w in weights]
    lines = [np.asarray(line.get_ydata()) for line in reduce.lines]
    np.testing.assert_allclose(lines[1], noise)
    assert [len(lines), len(normal.lines)] == [4, 4]  # the last one is the uniform weight
    assert sum(len(faint.get_segments()) for faint in normal.collections) == 15
    np.testing.assert_array_equal(skips.lines[0].get_ydata(), [i % 4 for i in range(count)])
    assert normal.lines[0].get_marker() == ("o" if count == 1 else "")
    assert len(figures[0].legends[0].get_texts()) == 5


def test_losses_are_smoothed_by_a_median_and_skip_gaps(
    figures: list[Figure], tmp_path: Path
) -> None:
    losses = np.random.default_rng(1).random(90)
    losses[7] = 50.0
    rows = [
        {"epoch": str(i / 9), "weight_loss": str(loss), "arch_loss": "" if i % 3 else "0.5"}
        for i, loss in enumerate(losses)
    ]
    marks = {"constant": 0.8, "mean of visible pixels": 0.8001}
    plot_losses(rows, readings(4, 3), marks, tmp_path)
    axes = figures[0].axes[0]
    raw, smooth, arch = (np.asarray(axes.lines[index].get_ydata()) for index in (0, 1, 2))
    np.testing.assert_allclose(raw, losses)
    expected = [statistics.median(losses[max(0, i - 2) : i + 3]) for i in range(90)]
    np.testing.assert_allclose(smooth, expected)
    assert len(arch) == 30
    assert axes.get_ylim()[1] < 2
    np.testing.assert_allclose(axes.lines[4].get_ydata(), [0.5, 0.51, 0.52, 0.53])
    names = [text for text in axes.texts if text.get_text()]
    assert [text.get_text() for text in names] == ["constant 0.800", "mean of visible pixels 0.800"]
    assert not overlap(names[0].get_window_extent(), names[1].get_window_extent())


def test_losses_are_drawn_before_there_is_anything(tmp_path: Path) -> None:
    assert len(plot_losses([], [], {}, tmp_path)) == 2


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_reconstructions_show_the_right_pixels(channels: int, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    images, guesses = random.random((2, 3, channels, 8, 12)) * 1.2 - 0.1
    hidden = random.random((3, 2, 3)) < 0.5
    path = plot_reconstructions(images, hidden, guesses, tmp_path)[0]
    assert path == tmp_path / "reconstructions.png"
    sheet = imread(path)[..., :3]
    for number in range(3):
        for y in range(8):
            for x in range(12):
                behind = hidden[number, y // 4, x // 4]
                pick = slice(None) if channels == 3 else slice(0, 1)
                seen = np.clip(images[number, pick, y, x], 0, 1)
                guess = np.clip(guesses[number, pick, y, x], 0, 1)
                masked = (0.60, 0.68, 0.80) if behind else seen
                panels = [seen, masked, guess, guess if behind else seen]
                # 12 columns enlarged by 224 // 12 = 18, ten pixels between, labels 150 wide.
                left = 150 + number * (12 * 18 + 10) + 18 * x
                for row, colours in enumerate(panels):
                    top = 10 + row * (8 * 18 + 10) + 18 * y
                    tile = sheet[top : top + 18, left : left + 18]
                    np.testing.assert_allclose(
                        tile, np.broadcast_to(colours, tile.shape), atol=0.003
                    )


def test_reconstructions_say_when_they_show_one_channel_of_many(tmp_path: Path) -> None:
    images = np.zeros((8, 5, 4, 6))
    hidden = np.zeros((8, 2, 2), bool)
    plot_reconstructions(images, hidden, images, tmp_path)
    svg = (tmp_path / "reconstructions.svg").read_text()
    assert "channel 1" in svg
    assert "of 5" in svg
    assert imread(tmp_path / "reconstructions.png").shape[1] == 150 + 8 * (6 * 37 + 10)
