"""Pictures of a training: its curves, and which classes are taken for which."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mae_nas.runs import canvas

Rows = Sequence[Mapping[str, object]]
MOST_CLASSES = 30
"""Of which every cell of the confusion matrix is shown; of more, the worst ones alone."""


@canvas.styled
def plot_curves(rows: Rows, readings: Rows, folder: str | Path) -> list[Path]:
    """Draw losses and accuracies over epochs.

    Args:
        rows: as `metrics.csv` holds them: `epoch`, `weight_loss`, `accuracy`.
        readings: as `readings.jsonl` holds them.
        folder: where `curves.png` and `.svg` go.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = _numbers(rows, "epoch")
    judged_by = str(readings[-1]["judged_by"]) if readings else "test"
    at = _numbers(readings, "epoch")
    for axes, key, other, name in (
        (left, "weight_loss", "loss", "Loss"),
        (right, "accuracy", "top1", "Accuracy"),
    ):
        axes.plot(epochs, _numbers(rows, key), color=canvas.WEIGHT, alpha=0.6, label="training")
        axes.plot(at, _numbers(readings, other), "o-", ms=3, color=canvas.INK, label=judged_by)
        axes.set(xlabel="epoch", title=name)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    # A wild reading of the first epochs may lie far above everything else.
    late = _numbers(readings, "loss")[len(readings) // 5 :]
    shown = [loss for loss in (*_numbers(rows, "weight_loss"), *late) if np.isfinite(loss)] or [1.0]
    left.set_ylim(0, 1.08 * max(shown))
    left.set_ylabel("cross entropy (training: with auxiliary head)")
    right.set_ylabel("share of images")
    right.set_ylim(0, 1)
    right.legend(loc="lower right")
    return canvas.save(figure, Path(folder) / "curves")


@canvas.styled
def plot_classes(
    confusion: NDArray[np.int64], classes: Sequence[str], folder: str | Path
) -> list[Path]:
    """Draw accuracy by class, worst first, and the confusion matrix of the same classes.

    Args:
        confusion: (K, K), images by true class (row) and predicted class.
        classes: their names.
        folder: where `classes.png` and `.svg` go.
    """
    totals = np.maximum(confusion.sum(1), 1)
    right = confusion.diagonal() / totals
    worst = np.argsort(right, kind="stable")[:MOST_CLASSES]
    shares = (confusion / totals[:, None])[np.ix_(worst, worst)]
    names = [classes[number] for number in worst]
    figure = Figure(figsize=(12, max(4.0, 0.26 * len(worst) + 1.6)), layout="constrained")
    bars, matrix = figure.subplots(1, 2)
    places = np.arange(len(worst))
    bars.barh(places, right[worst], color=canvas.WEIGHT)
    bars.set_yticks(places, names)
    bars.invert_yaxis()
    bars.grid(axis="y", visible=False)
    bars.set(xlim=(0, 1), xlabel="share of its images", title="Accuracy by class")
    if len(classes) > len(worst):
        bars.set_title(f"Accuracy by class, the worst {len(worst)} of {len(classes)}")
    shown = matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    matrix.set_xticks(places, names, rotation=90)
    matrix.set_yticks(places, names)
    matrix.grid(visible=False)
    matrix.set(xlabel="taken for", title="Each class (row), and what it is taken for")
    figure.colorbar(shown, ax=matrix, shrink=0.8)
    return canvas.save(figure, Path(folder) / "classes")


def _numbers(rows: Rows, key: str) -> NDArray[np.float64]:
    values = (row.get(key) for row in rows)
    return np.array([np.nan if value in ("", None) else float(str(value)) for value in values])
