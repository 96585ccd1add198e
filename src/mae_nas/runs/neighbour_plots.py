"""A picture of what features find alike: some images, each followed by its nearest ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mae_nas.data import ImageStore
from mae_nas.data.store import shift_of
from mae_nas.runs import canvas

ROWS, NEIGHBOURS = 8, 7
_BLOCK = 4096  # rows compared at once


def nearest(features: NDArray[np.float32], queries: Sequence[int], count: int) -> NDArray[np.int64]:
    """The images most like each query, itself left out, by cosine of features less their mean.

    Less their mean, since all features after a ReLU point the same way.

    Shapes:
        features: (N, D)  ->  (queries, count), nearest first; of equal ones the lower comes first.
    """
    mean = features.mean(0, dtype=np.float64)

    def unit(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        centred = rows - mean
        return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)

    asked = unit(features[list(queries)])
    blocks = [
        asked @ unit(features[start : start + _BLOCK]).T
        for start in range(0, len(features), _BLOCK)
    ]
    alike = np.concatenate(blocks, axis=1)
    alike[np.arange(len(queries)), list(queries)] = -np.inf
    return np.argsort(-alike, axis=1, kind="stable")[:, :count]


def shown(store: ImageStore, number: int) -> NDArray[np.float64]:
    """The window of an image that a network sees, (S, S, 3) in [0, 1]; of many channels the first.

    Images of 8 bits keep their full range.
    """
    whole = store[number]
    top, left = ((length - store.side) // 2 for length in whole.shape[:2])
    window = whole[top : top + store.side, left : left + store.side].astype(float)
    low, high = store.moments.low, store.moments.high
    if store.pixels.dtype == np.uint8:
        low, high = 0.0, 255.0
    scaled = (window + shift_of(store.pixels) - low) / (high - low or 1.0)
    return (scaled if store.channels == 3 else scaled[..., :1].repeat(3, -1)).clip(0, 1)


@canvas.styled
def plot_neighbours(features: NDArray[np.float32], store: ImageStore, path: Path) -> list[Path]:
    """Draw images spread over the table, a row for each, and on its right the nearest ones.

    Args:
        features: (N, D), two images or more.
        store: of the images.
        path: of the picture, .png.
    """
    count = min(NEIGHBOURS, len(features) - 1)
    queries = np.unique(np.linspace(0, len(features) - 1, ROWS).round().astype(int)).tolist()
    found = nearest(features, queries, count)
    figure = Figure(figsize=(1.1 * (count + 1) + 0.4, 1.1 * len(queries)), layout="constrained")
    panels = figure.subplots(len(queries), count + 1, squeeze=False)
    for across, query, others in zip(panels, queries, found, strict=True):
        for panel, image in zip(across, (query, *others.tolist()), strict=True):
            panel.imshow(shown(store, image), interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            panel.grid(visible=False)
        for side in across[0].spines.values():
            side.set(visible=True, linewidth=2.5, color=canvas.WEIGHT)
    panels[0, 0].set_title("image", fontsize=9)
    if count:
        panels[0, 1].set_title("nearest", fontsize=9)
    return canvas.save(figure, path)
