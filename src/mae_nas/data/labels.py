"""Labels and choices that class folders imply; search itself never reads a label."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mae_nas.data.files import natural_key


def class_of(name: str) -> str:
    """The class folder in CLASS/…/FILE."""
    return name.partition("/")[0]


def class_labels(files: Sequence[str]) -> NDArray[np.int64]:
    """Number of each file's class folder, in alphabetical order: (N,), int64."""
    _, labels = np.unique([class_of(name) for name in files], return_inverse=True)
    return labels.astype(np.int64)


def take_fraction(files: Sequence[str], fraction: float) -> list[str]:
    """A fraction of each class, at least one file, the same ones whatever else is there.

    The choice is by a hash of the name, so that smaller fractions are parts of larger ones.
    """
    classes: defaultdict[str, list[str]] = defaultdict(list)
    for name in files:
        classes[class_of(name)].append(name)
    taken: list[str] = []
    for names in classes.values():
        count = max(1, math.floor(fraction * len(names) + 0.5))
        taken += sorted(names, key=_hash)[:count]
    return sorted(taken, key=natural_key)


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogateescape")).digest()
