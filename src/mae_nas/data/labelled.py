"""Images with labels: batches to train a found network, and those that it is judged by."""

from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mae_nas import ranks
from mae_nas.batch import Batch
from mae_nas.data.gather import Cutter
from mae_nas.data.pipeline import StepData
from mae_nas.data.source import ImageSource
from mae_nas.data.splits import Split, fitting, group_images
from mae_nas.data.steps import TRAINING, BatchMaker
from mae_nas.data.store import ImageStore, Moments
from mae_nas.randomness import Purpose, derive_key, permutation

_TEST_SHARE = 0.2
_PARTS = frozenset({"train", "test", "val", "valid", "validation"})


class LabelledData(StepData):
    """Batches of all training images, and the test images.

    A data set without test images of its own gives a fifth of its images for them, by whole groups
    and the same whatever the seed.

    Args:
        source: the data set; it has labels.
        seed: of the run.
        batch_size: images of a step, shared equally by all ranks.
        validates: keep `source.held_out` of the training images to judge by, so that the test
            images are left alone where something is to be chosen.
        accumulate: see `StepData`, as the others.
        workers: ...
        resident: ...
    """

    levels = TRAINING
    shares = MappingProxyType(
        {"weights": "for training", "held_out": "for validation", "test": "for the test"}
    )

    def __init__(
        self,
        source: ImageSource,
        seed: int,
        batch_size: int,
        *,
        validates: bool,
        accumulate: int = 1,
        workers: int | Literal["auto"] = "auto",
        resident: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(source, seed, batch_size, accumulate, workers, resident)
        self.validates = validates
        self._test: tuple[ImageStore, NDArray[np.int64]] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.store.classes)

    def divide(self, store: ImageStore) -> tuple[ImageStore, Split]:
        if len(store.classes) == 1:
            raise ValueError(
                f"data: all images are of one class, {store.classes[0]}; two or more are needed"
            )
        if store.labels is None or not store.classes:
            raise ValueError(
                "data: its images have no labels; a network is trained on data=digits, cifar10, "
                "cifar100, imagenet, or on data=folder with a folder for each class"
            )
        if set(store.classes) <= _PARTS:
            raise ValueError(
                f"data.root: its folders are {', '.join(store.classes)}, which are no classes; use "
                "the one with training images, and data.test=FOLDER for those with test images"
            )
        if self.augmentation and (store.pixels.dtype != np.uint8 or store.channels not in (1, 3)):
            raise ValueError(
                f"data: images of {store.channels} channels of {store.pixels.dtype}; policies, "
                "colour jitter and resized crops (recipe) are for grey or colour images of 8 bits"
            )
        groups = group_images(store.files, self.source.group, store.digests)
        rest, test = np.arange(len(store)), self._own_test(store)
        if test is None:
            room = round(_TEST_SHARE * len(store))
            tested, rest = _parted(rest, groups, derive_key(Purpose.TEST_SPLIT), room)
            store = replace(store, moments=Moments.of_images(store, rest))
            test = store, tested
        held_out = rest[:0]
        if self.validates:
            room = min(self.source.held_out, len(rest) // 10)
            held_out, rest = _parted(rest, groups, derive_key(self.seed, Purpose.SPLIT), room)
        if len(rest) < self.batch_size:
            raise ValueError(
                f"data.batch_size: {self.batch_size} does not fit {len(rest)} training images"
            )
        self._test = test
        return store, Split(weights=rest, architecture=rest[:0], held_out=held_out)

    def _own_test(self, store: ImageStore) -> tuple[ImageStore, NDArray[np.int64]] | None:
        """The data set's test images; None if it has none and need not have."""
        test = self.source.load_test()
        if test is None and self.source.has_test:
            raise FileNotFoundError(
                "data.root: the training images are there, the test images are not (test/, or val/ "
                "of ImageNet); data=folder would keep a fifth of the images for the test"
            )
        return None if test is None else (_like(test, store), np.arange(len(test)))

    @property
    def tested(self) -> tuple[ImageStore, NDArray[np.int64]]:
        """A store, with the training images' statistics and classes, and its test images."""
        assert self._test is not None
        return self._test

    @property
    def shared(self) -> int:
        """Test images that are training images too, to the bit."""
        (test, tested), split = self.tested, self.split
        trained = np.concatenate([split.weights, split.held_out])
        known = {digest.tobytes() for digest in self.store.digests[trained]}
        return sum(digest.tobytes() in known for digest in test.digests[tested])

    def test_batches(self) -> Iterator[Batch]:
        """This rank's test images once, in nearly equal batches, with labels."""
        store, positions = self.tested
        maker = self._maker
        if store is not self.store:
            cutter = Cutter(store, 0, None)
            maker = BatchMaker(cutter, maker.order, self.dtype, flip=False, levels=TRAINING)
        parts = self._parts(positions, ranks.size())[ranks.index() :: ranks.size()]
        return (maker.held_out(part) for part in parts if len(part))

    def judged_batches(self) -> Iterator[Batch]:
        """The validation images where there are such, else the test images."""
        return self.held_out_batches() if self.validates else self.test_batches()

    def describe(self) -> dict[str, object]:
        facts = super().describe() | {"test": len(self.tested[1]), "classes": list(self.classes)}
        del facts["architecture"]
        return facts


def _parted(
    positions: NDArray[np.int64], groups: NDArray[np.int64], key: int, room: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole groups of `positions`, at most `room` images, drawn by `key`; and the rest."""
    _, numbers = np.unique(groups[positions], return_inverse=True)
    order = permutation(int(numbers.max()) + 1, key).tolist()
    if len(order) < 2:
        raise ValueError(
            f"data.group: all {len(positions)} images are of one group, and none is left to judge "
            "by: use data.group=none, or data.test"
        )
    members = [positions[numbers == group] for group in order]
    chosen = fitting(members, room)
    taken = np.isin(positions, np.concatenate([members[i] for i in sorted(chosen)]))
    return positions[taken], positions[~taken]


def _like(test: ImageStore, train: ImageStore) -> ImageStore:
    """The test images with the training images' statistics and class numbers."""
    unknown = sorted(set(test.classes) - set(train.classes))
    if test.labels is None or unknown:
        missing = f"class {unknown[0]}" if unknown else "no labels"
        raise ValueError(f"data: the test images have {missing}, unlike the training images")
    if (test.channels, test.side) != (train.channels, train.side):
        raise ValueError(
            f"data: test images of {test.channels} channels and {test.side} pixels, training "
            f"images of {train.channels} and {train.side}"
        )
    number = {name: place for place, name in enumerate(train.classes)}
    labels = np.array([number[name] for name in test.classes])[test.labels]
    return replace(test, moments=train.moments, classes=train.classes, labels=labels)
