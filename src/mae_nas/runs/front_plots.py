"""The picture of what a budget buys: the score of the best cells over each of their costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mae_nas.runs import canvas


@canvas.styled
def plot_fronts(
    fronts: Mapping[str, Sequence[tuple[float, float]]],
    chosen: Mapping[str, float],
    score: float,
    path: Path,
) -> list[Path]:
    """Draw Pareto fronts side by side, and where the chosen cells stand.

    Args:
        fronts: by name of the cost, (cost, score) from the cheapest on.
        chosen: its cost by the same names.
        score: of the chosen cells.
        path: of the picture.
    """
    figure = Figure(figsize=(3.6 * len(fronts) + 0.6, 3.8), layout="constrained")
    panels = figure.subplots(1, len(fronts), sharey=True, squeeze=False)[0]
    for panel, (name, points) in zip(panels, fronts.items(), strict=True):
        costs, scores = zip(*points, strict=True)
        panel.step(costs, scores, where="post", color=canvas.WEIGHT, lw=1, alpha=0.5)
        panel.plot(costs, scores, "o", ms=3, color=canvas.WEIGHT, label="best at its cost")
        panel.plot(chosen[name], score, "D", ms=8, color=canvas.ARCHITECTURE, label="chosen")
        if all(float(cost).is_integer() for cost in costs):
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set(xlabel=name, title=f"{len(points)} trade-offs")
    panels[0].set_ylabel("score: sum of mixing weights")
    panels[0].legend(loc="lower right")
    return canvas.save(figure, path)
