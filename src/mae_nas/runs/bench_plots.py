"""The picture of a benchmark: how a step's time grows with the images' side and with the width."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from mae_nas.runs import canvas


@canvas.styled
def plot_growth(rows: Sequence[Mapping[str, Any]], path: Path) -> list[Path]:
    """Draw seconds an image, in both updates, over side and over width.

    Args:
        rows: of `mae_nas.runs.bench.growth`; the first is of the setting that is varied.
        path: without suffix; a PNG and an SVG are written.
    """
    figure = Figure(figsize=(10.5, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    others = {"side": "width", "width": "side"}
    for panel, (key, other) in zip(panels, others.items(), strict=True):
        _draw(panel, [row for row in rows if row[other] == rows[0][other]], key)
        panel.set_title(f"{other} {rows[0][other]}, {rows[0]['batch']} images")
    panels[0].set_ylabel("processor seconds an image and step")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    return canvas.save(figure, path)


def _draw(panel: Axes, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    for name in dict.fromkeys(row["name"] for row in rows):
        points = sorted(
            (row[key], row["seconds"] / row["batch"]) for row in rows if row["name"] == name
        )
        panel.plot(*zip(*points, strict=True), marker="o", label=name)
    values = sorted({row[key] for row in rows})
    panel.set(xscale="log", yscale="log", xlabel=key, xticks=values, xticklabels=values)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
