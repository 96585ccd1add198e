"""What all pictures share: one style, colours that colour-blind eyes tell apart, one `save`.

Matplotlib's object interface only: no pyplot, no window, no system binary, and none of the user's
matplotlibrc (it may ask for LaTeX). The same data give the same bytes.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mae_nas.runs.files import replacing

INK, MUTED, FAINT = "#22262b", "#6b7280", "#e4e7eb"
WEIGHT, ARCHITECTURE = "#0072b2", "#d55e00"
DPI = 150
FORMATS = (".png", ".svg")
TITLES = {"normal": "Normal cell", "reduce": "Reduction cell"}

# Okabe and Ito's palette: hue tells the kind of operation, lightness the member of the kind.
_COLOURS = {
    "none": "#9aa1ab",
    "skip_connect": "#d55e00",
    "max_pool_3x3": "#00694d",
    "avg_pool_3x3": "#3fbf97",
    "sep_conv_3x3": "#0072b2",
    "sep_conv_5x5": "#5bb4e5",
    "sep_conv_7x7": "#0b3a5e",
    "conv_7x1_1x7": "#3d4fb5",
    "dil_conv_3x3": "#a3447c",
    "dil_conv_5x5": "#dd8fbd",
    "noise": "#1f1f1f",
}
_OTHER = "#b58900"
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "mae_nas",
}

# A decorator: draws and saves in this project's style.
styled = style.context(["default", _STYLE])


def human(primitive: str) -> str:
    """`sep_conv_3x3` as people write it: "sep 3×3"."""
    words = primitive.replace("skip_connect", "skip").replace("conv_7x1_1x7", "conv 7×1 1×7")
    words = re.sub(r"^(sep|dil)_conv", r"\1", words).replace("_", " ")
    return re.sub(r"(\d)x(\d)", r"\1×\2", words)


def colour(primitive: str) -> str:
    """The colour of an operation in every picture."""
    return _COLOURS.get(primitive, _OTHER)


def ink_on(fill: str) -> str:
    """Dark or white, whichever reads better on `fill`."""
    red, green, blue = to_rgb(fill)
    return INK if 0.3 * red + 0.59 * green + 0.11 * blue > 0.55 else "white"


def node_name(node: int, inputs: int) -> str:
    """Name of a cell's node as in DARTS: c_{k-2} and c_{k-1} are the inputs, then 0, 1, …."""
    return f"$c_{{k-{inputs - node}}}$" if node < inputs else str(node - inputs)


def spread(wanted: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """Positions nearest to `wanted` (least squares), in that order, at least `gaps` apart.

    Pools adjacent violators of the isotonic regression of `wanted` less the running gaps.
    """
    offset = np.concatenate(([0.0], np.cumsum(gaps)))
    pools: list[tuple[float, int]] = []
    for value in np.asarray(wanted, float) - offset[: len(wanted)]:
        mean, count = float(value), 1
        while pools and pools[-1][0] > mean:
            before, size = pools.pop()
            mean, count = (before * size + mean * count) / (size + count), size + count
        pools.append((mean, count))
    levels = [mean for mean, count in pools for _ in range(count)]
    return [level + float(shift) for level, shift in zip(levels, offset, strict=False)]


@styled
def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write a figure, never half of it: PNG and SVG if `path` has no suffix, else that format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    targets = [path] if path.suffix else [path.with_suffix(end) for end in FORMATS]
    for target in targets:
        kind = target.suffix[1:]
        metadata = {"Date": None} if kind == "svg" else {}
        with replacing(target) as partial:
            figure.savefig(partial, format=kind, dpi=DPI, facecolor="white", metadata=metadata)
        figure.set_layout_engine(None)  # found once; each format would look for it again
    return targets
