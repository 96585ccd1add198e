"""Pictures of what a search reconstructs: input, masked, prediction, composite."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from mae_nas.runs import canvas
from mae_nas.runs.files import replacing

# Pixels.
_SIDE, _GAP, _LABELS = 224, 10, 150
_HIDDEN = (0.60, 0.68, 0.80)


@canvas.styled
def plot_reconstructions(
    images: ArrayLike, hidden: ArrayLike, predictions: ArrayLike, folder: str | Path
) -> list[Path]:
    """Four rows, a column per image: input, masked, prediction, and visible pixels pasted over it.

    Images are laid out in whole pixels, each enlarged by a whole factor, so that they stay crisp.

    Args:
        images: values in [0, 1], (N, C, H, W).
        hidden: True where hidden, (N, h, w), patches or pixels: h divides H and w divides W.
        predictions: (N, C, H, W); values outside [0, 1] are clipped.
        folder: where `reconstructions.png` and `.svg` go, and `.npz` with the arrays `images` and
            `predictions` (times 255, uint8) and `hidden`.
    """
    channels, height, width = np.shape(images)[1:]
    inputs, guesses = _colours(images), _colours(predictions)
    unseen = np.asarray(hidden, bool)[..., None]
    unseen = unseen.repeat(height // unseen.shape[1], 1).repeat(width // unseen.shape[2], 2)
    masked = np.where(unseen, _HIDDEN, inputs)
    rows = np.stack([inputs, masked, guesses, np.where(unseen, guesses, inputs)])
    zoom = max(1, _SIDE // max(height, width))
    tiles = np.pad(
        rows.repeat(zoom, 2).repeat(zoom, 3),
        ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)),
        constant_values=1.0,
    )
    sheet = np.hstack([np.vstack(column) for column in tiles.swapaxes(0, 1)])
    sheet = np.pad(sheet, ((_GAP, 0), (_LABELS, 0), (0, 0)), constant_values=1.0)
    tall, wide, _ = sheet.shape
    figure = Figure(figsize=(wide / canvas.DPI, tall / canvas.DPI))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow((255 * sheet + 0.5).astype(np.uint8), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    left, step = _GAP / wide, height * zoom + _GAP
    for row, label in enumerate(("input", "masked", "prediction", "composite")):
        y = 1 - (_GAP + row * step + height * zoom / 2) / tall
        figure.text(left, y, label, va="center", weight="bold")
    if channels not in (1, 3):
        note = f"channel 1\nof {channels}"
        figure.text(left, 1 - 2 * _GAP / tall, note, va="top", color=canvas.MUTED)
    pictures = canvas.save(figure, Path(folder) / "reconstructions")
    with replacing(pictures[0].with_suffix(".npz")) as name, name.open("wb") as file:
        np.savez_compressed(
            file,
            images=_bytes(images),
            predictions=_bytes(predictions),
            hidden=np.asarray(hidden, bool),
        )
    return pictures


def _bytes(values: ArrayLike) -> NDArray[np.uint8]:
    """Values in [0, 1] as 0 … 255."""
    return (255 * np.nan_to_num(np.asarray(values, float)).clip(0, 1) + 0.5).astype(np.uint8)


def _colours(images: ArrayLike) -> NDArray[np.float64]:
    """(N, C, H, W) as red, green and blue, (N, H, W, 3): grey and other stacks show channel 1."""
    stack = np.asarray(images, float).transpose(0, 2, 3, 1)
    stack = stack if stack.shape[-1] == 3 else stack[..., :1].repeat(3, -1)
    return np.nan_to_num(stack).clip(0.0, 1.0)
