"""The picture of a comparison: every seed as a dot, the mean of each network and its interval."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mae_nas.runs import canvas
from mae_nas.runs.canvas import INK, WEIGHT
from mae_nas.runs.spread import interval


@canvas.styled
def plot_comparison(
    measures: Mapping[str, Mapping[str, Sequence[float]]], path: Path
) -> list[Path]:
    """Draw a panel for each measure.

    Args:
        measures: by title, then by network: a value for each seed.
        path: of the picture, without its suffix.
    """
    figure = Figure(figsize=(max(5.0, 3.4 * len(measures)), 3.8), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for panel, (title, networks) in zip(panels, measures.items(), strict=True):
        for place, values in enumerate(networks.values()):
            panel.plot([place] * len(values), values, "o", color=WEIGHT, ms=5, alpha=0.6)
            low, high = interval(values)
            if np.isfinite([low, high]).all():
                panel.plot([place + 0.2] * 2, [low, high], color=INK, lw=1.5)
            panel.plot([place + 0.2], [np.mean(values)], "D", color=INK, ms=4)
        panel.set_title(title)
        panel.set_xticks(range(len(networks)), list(networks), rotation=40, ha="right")
        panel.set_xlim(-0.5, len(networks) - 0.5)
    figure.supxlabel("dots: seeds; beside them mean and 95 % interval of the mean", fontsize=9)
    return canvas.save(figure, path)
