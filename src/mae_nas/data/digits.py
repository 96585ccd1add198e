"""The embedded default: handwritten digits."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mae_nas.data.assemble import store_of_arrays
from mae_nas.data.source import ImageSource, Progress
from mae_nas.data.store import ImageStore


@dataclass(kw_only=True)
class Digits(ImageSource):
    """scikit-learn's 1,797 scans of digits, 8×8 pixels in 17 levels, resized; one channel."""

    flip: bool = False

    natural_side: ClassVar[int | None] = 32
    natural_channels: ClassVar[int | None] = 1

    def load(self, on_progress: Progress | None = None) -> ImageStore:  # noqa: ARG002 - no files
        """Resize all scans, with their labels."""
        from sklearn.datasets import load_digits  # a second to import

        scans, labels = load_digits(return_X_y=True)
        images = np.rint(scans.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
        names = [f"{i:04d}" for i in range(len(images))]
        side = self.known_side() or 32
        return store_of_arrays(images, names, side, labels.astype(np.int64))
