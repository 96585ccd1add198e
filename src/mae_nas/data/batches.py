"""From the number of a step to its batches, on one device, without host synchronisation."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae_nas.batch import Batch
from mae_nas.data.gather import (
    Boxes,
    Extents,
    Normalisation,
    centre_boxes,
    crop_boxes,
    gather_host,
    gather_resident,
    mirror,
    sample_flips,
)
from mae_nas.data.source import ImageSource
from mae_nas.data.steps import LEVELS, RawBatch, RawStep, StepOrder
from mae_nas.data.store import ImageStore
from mae_nas.randomness import Purpose, derive_key


class BatchMaker:
    """Cuts, mirrors and normalises the images of steps, all drawn from (seed, step, position).

    Args:
        source: how images may be varied.
        store: the images.
        order: which images a step sees; its device is that of the batches.
        dtype: of the images.
        resident: keep all images on the device; else they are cut on the host.
    """

    def __init__(
        self,
        source: ImageSource,
        store: ImageStore,
        order: StepOrder,
        dtype: torch.dtype,
        resident: bool,
    ) -> None:
        self.source, self.store, self.order = source, store, order
        self.device = device = order.device
        self.pixels = torch.from_numpy(store.pixels).to(device) if resident else None
        self.extents = Extents.of(store, device)
        self.normalisation = Normalisation.of(store, device, dtype)
        self.labels = None if store.labels is None else torch.from_numpy(store.labels).to(device)

    def step(self, item: int | RawStep, micro_batches: int) -> dict[str, list[Batch]]:
        """Both batches of a step, `weights` and `arch`, each cut into equal micro-batches."""
        step = item if isinstance(item, int) else item.step
        batches: dict[str, list[Batch]] = {}
        for name, purpose in LEVELS:
            key = derive_key(self.order.seed, purpose, step)
            if isinstance(item, int):
                raw = self._cut(self.order.index(purpose, step), key)
            else:
                raw = item.weights if purpose is Purpose.WEIGHTS else item.arch
            batch = self._finish(raw, key, flip=self.source.flip)
            batches[name] = _micro_batches(batch, micro_batches)
        return batches

    def held_out(self, positions: NDArray[np.int64]) -> Batch:
        """Images at some positions of the store: centre crop, no mirroring, one key for all."""
        index = torch.from_numpy(positions).to(self.device)
        key = derive_key(self.order.seed, Purpose.HELD_OUT)
        return self._finish(self._cut(index, None), key, flip=False)

    def _cut(self, index: Tensor, key: int | None) -> RawBatch:
        """Random windows by `key`, or without one the centres."""
        extents, side = self.extents.at(index), self.store.side
        if key is None:
            boxes = centre_boxes(extents, side)
        else:
            boxes = crop_boxes(key, index, extents, side, self.source.crop_padding)
        if self.pixels is not None:
            windows = gather_resident(self.pixels, extents, boxes, side, self.store.black)
        else:
            on_host = Boxes(boxes.top.cpu(), boxes.left.cpu())
            windows = gather_host(self.store, index.cpu(), on_host).to(self.device)
        return RawBatch(windows, index)

    def _finish(self, raw: RawBatch, key: int, flip: bool) -> Batch:
        windows, index = raw
        if flip:
            windows = mirror(windows, sample_flips(key, index))
        label = None if self.labels is None else self.labels[index]
        return Batch(self.normalisation.apply(windows), index, key, label)


def _micro_batches(batch: Batch, count: int) -> list[Batch]:
    labels = [None] * count if batch.label is None else batch.label.chunk(count)
    pieces = zip(batch.image.chunk(count), batch.index.chunk(count), labels, strict=True)
    return [Batch(image, index, batch.key, label) for image, index, label in pieces]
