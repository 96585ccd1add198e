"""What varies a labelled training image beyond windows and mirroring: image by image, on the host.

The transforms are timm's and torchvision's. They draw from the global generators, which are set for
each image and put back, so that an image of a step is the same whatever worker or rank makes it.
"""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from mae_nas.checks import Checked

_RATIOS = 3 / 4, 4 / 3  # of a resized crop's sides (Szegedy et al., Going deeper, 2015)
Transform = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Augmentation(Checked):
    """Of 8-bit images, grey or in colour.

    Args:
        policy: timm's name of an AutoAugment or RandAugment, as `original` or `rand-m9-mstd0.5`.
        colour_jitter: largest relative change of brightness, contrast and saturation, and half as
            much of hue (DARTS has .4 on ImageNet).
        smallest_crop: share of an image that a random crop, resized to the side, has at least
            (.08 on ImageNet); 0 leaves windows as they are.
    """

    policy: str = ""
    colour_jitter: float = 0.0
    smallest_crop: float = 0.0

    def _problems(self) -> Iterator[str]:
        if not 0 <= self.colour_jitter <= 1:
            yield f"colour_jitter {self.colour_jitter}: must lie in [0, 1], e.g. 0.4"
        if not 0 <= self.smallest_crop <= 1:
            yield f"smallest_crop {self.smallest_crop}: must lie in [0, 1], e.g. 0.08"
        try:
            _check_policy(self.policy)
            _policy(self.policy, 32, 3)
        except (AssertionError, ValueError, KeyError):
            yield (
                f"policy {self.policy!r}: is none of timm's; e.g. original (AutoAugment) or "
                "rand-m9-mstd0.5 (RandAugment; m is at most 10, or mmax)"
            )

    def __bool__(self) -> bool:
        """Whether anything varies."""
        return bool(self.policy or self.colour_jitter or self.smallest_crop)

    def vary(self, image: NDArray[Any], seed: int, side: int) -> NDArray[np.uint8]:
        """An image (H, W, C), or a window of it -> (side, side, C); a function of all three."""
        channels = image.shape[-1]
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        with _drawing(seed):
            for transform in _transforms(self, side, channels):
                picture = transform(picture)
        return np.asarray(picture).reshape(side, side, channels)


@cache
def _transforms(augmentation: Augmentation, side: int, channels: int) -> list[Transform]:
    made: list[Transform] = []
    if share := augmentation.smallest_crop:
        made.append(transforms.RandomResizedCrop(side, (share, 1.0), _RATIOS))
    if most := augmentation.colour_jitter:
        made.append(transforms.ColorJitter(most, most, most, most / 2))
    return made + _policy(augmentation.policy, side, channels)


def _policy(name: str, side: int, channels: int) -> list[Transform]:
    if not name:
        return []
    from timm.data import auto_augment as timm  # seconds

    grey = 128 if channels == 1 else (128,) * channels
    given = {"translate_const": int(side * 0.45), "img_mean": grey}  # of its side, as timm
    make = timm.rand_augment_transform if name.startswith("rand") else timm.auto_augment_transform
    return [make(name, given)]


def _check_policy(name: str) -> None:
    """Refuse what timm passes over, and numbers that do nothing there or are beyond it."""
    kind, *parts = name.split("-")
    known = r"(m|mmax|n|inc)(\d+)|(p|mstd)(\d+(?:\.\d+)?)|t(?:weights|3aw|3a)"
    given = {"mmax": 10.0}
    for part in parts:
        read = re.fullmatch(known if kind == "rand" else r"(mstd)(\d+(?:\.\d+)?)()()", part)
        if read is None:
            raise ValueError(part)
        given[read[1] or read[3] or "t"] = float(read[2] or read[4] or 0)
    m, n, p = (given.get(key, 1) for key in "mnp")
    if not 1 <= n <= 100 or not 0 < p <= 1 or m > given["mmax"]:
        raise ValueError(name)


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """The global generators are of `seed` inside, and as before outside."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm's generator
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
