"""Pictures of what a search reconstructs: input, masked, prediction, composite."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from mae_nas.runs.canvas import DPI, MUTED, save, styled

_SIDE = 224
_GAP, _LABELS = 10, 150
_HIDDEN = (0.60, 0.68, 0.80)

Pixels = NDArray[np.float64]


@styled
def plot_reconstructions(
    images: ArrayLike, hidden: ArrayLike, predictions: ArrayLike, folder: str | Path
) -> list[Path]:
    """Four rows, a column per image: input, masked, prediction, and visible pixels pasted over it.

    Args:
        images: values in [0, 1], (N, C, H, W).
        hidden: True where hidden, (N, h, w), patches or pixels: h divides H and w divides W.
        predictions: (N, C, H, W); values outside [0, 1] are clipped.
        folder: where `reconstructions.png` and `.svg` go.
    """
    inputs, channels = _colours(images), np.asarray(images).shape[1]
    guesses = _colours(predictions)
    height, width = inputs.shape[1:3]
    unseen = np.asarray(hidden, bool)[..., None]
    unseen = unseen.repeat(height // unseen.shape[1], 1).repeat(width // unseen.shape[2], 2)
    rows = {
        "input": inputs,
        "masked": np.where(unseen, _HIDDEN, inputs),
        "prediction": guesses,
        "composite": np.where(unseen, guesses, inputs),
    }
    note = f"channel 1\nof {channels}" if channels not in (1, 3) else ""
    return save(_grid(rows, note), Path(folder) / "reconstructions")


def _colours(images: ArrayLike) -> Pixels:
    """(N, C, H, W) as red, green and blue, (N, H, W, 3): grey and other stacks show channel 1."""
    stack = np.asarray(images, float).transpose(0, 2, 3, 1)
    stack = stack if stack.shape[-1] == 3 else stack[..., :1].repeat(3, -1)
    return np.nan_to_num(stack).clip(0.0, 1.0)


def _grid(rows: dict[str, Pixels], note: str) -> Figure:
    """Lay images out in whole pixels, each enlarged by a whole factor, so that they stay crisp."""
    count, height, width, _ = next(iter(rows.values())).shape
    zoom = max(1, _SIDE // max(height, width))
    tall, wide = height * zoom + _GAP, width * zoom + _GAP
    total_wide, total_tall = _LABELS + count * wide, len(rows) * tall + _GAP
    sheet = np.ones((total_tall, total_wide, 3))
    figure = Figure(figsize=(total_wide / DPI, total_tall / DPI))
    for row, (label, images) in enumerate(rows.items()):
        top = _GAP + row * tall
        for column, image in enumerate(images):
            left = _LABELS + column * wide
            big = image.repeat(zoom, 0).repeat(zoom, 1)
            sheet[top : top + height * zoom, left : left + width * zoom] = big
        y = 1 - (top + height * zoom / 2) / total_tall
        figure.text(_GAP / total_wide, y, label, va="center", weight="bold")
    if note:
        figure.text(_GAP / total_wide, 1 - 2 * _GAP / total_tall, note, va="top", color=MUTED)
    axes = figure.add_axes((0, 0, 1, 1), zorder=-1)
    axes.imshow((255 * sheet + 0.5).astype(np.uint8), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    return figure
