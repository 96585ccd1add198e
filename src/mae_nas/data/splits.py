"""Which images train the weights, which the architecture, and which are held out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mae_nas.data.source import ImageSource
from mae_nas.data.store import ImageStore
from mae_nas.randomness import Purpose, derive_key, permutation

_HELD_OUT_SHARE = 10  # at most one image in ten


@dataclass(frozen=True)
class Split:
    """Positions in the store, disjoint, never dividing a group.

    Shapes:
        weights, architecture, held_out: (n,), int64.
    """

    weights: NDArray[np.int64]
    architecture: NDArray[np.int64]
    held_out: NDArray[np.int64]

    def check_batch(self, batch_size: int) -> None:
        """Raise unless both halves hold a batch."""
        weights, architecture = len(self.weights), len(self.architecture)
        if min(weights, architecture) < batch_size:
            raise ValueError(
                f"data.batch_size: {batch_size} does not fit splits of {weights} (weights), "
                f"{architecture} (architecture) and {len(self.held_out)} (held out) images; "
                f"use {min(weights, architecture)} or less, or more images"
            )


def split_images(source: ImageSource, store: ImageStore, seed: int) -> Split:
    """Half of the images for each level of the search, as in DARTS, Sec. 3.1, by whole groups.

    Groups are ordered by a seeded permutation, or by their first image (`ordered`); the first half
    trains the weights. The held-out images come from the end of the architecture half.

    Raises:
        ValueError: if there are too few groups.
    """
    groups = group_images(store.files, source.group, store.digests)
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    if len(members) < 3:
        key, way = "data.group", "data.group=none, or more images"
        if source.group == "none":
            key, way = "data", "more images, no copies"
        images, groups = len(store), len(members)
        raise ValueError(
            f"{key}: {images} image{'s' * (images > 1)} in {groups} group{'s' * (groups > 1)}; "
            f"weights, architecture and held-out images need a group each: use {way}"
        )
    if source.split == "random":
        order = permutation(len(members), derive_key(seed, Purpose.SPLIT)).tolist()
        members = [members[group] for group in order]
    # The cut that is nearest to the half, leaving two groups for the other side.
    ends = np.cumsum([len(group) for group in members])
    cut = int(np.argmin(np.abs(ends[:-2] - len(store) / 2))) + 1
    held_out = fitting(members[cut:], min(source.held_out, max(1, len(store) // _HELD_OUT_SHARE)))
    architecture = [group for i, group in enumerate(members[cut:]) if i not in held_out]
    return Split(
        weights=np.concatenate(members[:cut]),
        architecture=np.concatenate(architecture),
        held_out=np.concatenate([members[cut + i] for i in sorted(held_out)]),
    )


def fitting(groups: Sequence[NDArray[np.int64]], room: int) -> set[int]:
    """Groups from the end as far as they fit; the smallest one if none does."""
    chosen: set[int] = set()
    for i in range(len(groups) - 1, 0, -1):
        if len(groups[i]) <= room:
            chosen.add(i)
            room -= len(groups[i])
    return chosen or {min(range(len(groups)), key=lambda i: len(groups[i]))}


def group_images(files: Sequence[str], rule: str, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    """A group for each image, numbered by first appearance; exact duplicates share theirs: (N,)."""
    leader = list(range(len(files)))
    if rule not in ("none", "parent") and not any(re.search(rule, name) for name in files):
        raise ValueError(
            f"data.group: {rule!r} matches none of {len(files)} files; it is searched for in paths "
            f"below data.root such as {files[0]}"
        )

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    first: dict[object, int] = {}
    for i, (name, digest) in enumerate(zip(files, digests, strict=True)):
        for label in (("group", _group_name(name, rule)), ("digest", digest.tobytes())):
            one, other = find(first.setdefault(label, i)), find(i)
            leader[max(one, other)] = min(one, other)
    _, groups = np.unique([find(i) for i in range(len(files))], return_inverse=True)
    return groups.astype(np.int64)


def _group_name(name: str, rule: str) -> str:
    if rule == "none":
        return name
    if rule == "parent":
        return name.rpartition("/")[0]
    match = re.search(rule, name)
    if match is None:
        return f"\0{name}"  # a group of its own, which no match can name
    return match.group(1) or "" if match.re.groups else match.group()
