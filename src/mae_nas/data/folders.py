"""Data sets in folders of the user's: any images, ImageNet, CIFAR-10 and CIFAR-100."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from mae_nas.data.files import check_folder, is_image, subfolders
from mae_nas.data.loading import load_files, store_of_arrays
from mae_nas.data.source import ImageSource, Progress
from mae_nas.data.store import ImageStore

_PLACES = ("imagenet/train", "imagenet-sample/train", "train", ".")
_TEST_PLACES = ("imagenet/val", "imagenet-sample/val", "val")


@dataclass(kw_only=True)
class Folder(ImageSource):
    """A folder of image files, flat or nested, without labels.

    `side=auto` takes the median short side of the files and picks the nearest of 32, 64, 96, 128,
    224 pixels. Mirroring is off, since an image of unknown kind may not survive it.

    Args:
        root: the folder.
        test: a folder of test images in class folders, for training; a search never sees it.
        channels: `auto` is 1 if all images are grey, 3 for pictures, N for stacks of N.
        cache: folder for decoded images; `auto` is the user's cache folder, None is memory.
    """

    root: str
    test: str | None = None
    channels: int | Literal["auto"] = "auto"
    cache: str | None = "auto"
    flip: bool = False

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.channels != "auto" and self.channels < 1:
            yield f"data.channels: {self.channels} is not a number of channels; use auto"

    def known_channels(self) -> int | None:
        return None if self.channels == "auto" else self.channels

    def load(self, on_progress: Progress | None = None) -> ImageStore:
        root = Path(self.root).expanduser()
        store = load_files(root, self.side, self.channels, self.cache, on_progress)
        is_nested = all("/" in name for name in store.files)
        return store.labelled_by_folder() if is_nested else store

    def load_test(self) -> ImageStore | None:
        if self.test is None:
            return None
        if self.side == "auto" or self.channels == "auto":
            raise ValueError(
                "data.test: needs data.side and data.channels, which both folders must have alike"
            )
        root = Path(self.test).expanduser()
        return load_files(root, self.side, self.channels, self.cache).labelled_by_folder()


@dataclass(kw_only=True)
class ImageNet(ImageSource):
    """Training images in class folders; RGB.

    Args:
        root: holds `imagenet/train/CLASS/FILE`, `imagenet-sample/train/…`, `train/…` or the class
            folders themselves; the first that exists is used. Test images lie in `val` beside
            `train`.
        fraction: of each class, in (0, 1].
        cache: folder for decoded image files; `auto` is the user's cache folder, None is memory.
    """

    root: str
    fraction: float = 1.0
    cache: str | None = "auto"

    has_test = True
    natural_side = 224
    natural_channels = 3

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if not 0 < self.fraction <= 1:
            yield f"data.fraction: {self.fraction} is not in (0, 1]"

    def load(self, on_progress: Progress | None = None) -> ImageStore:
        root = Path(self.root).expanduser()
        check_folder(root)
        store = self._first(root, _PLACES, self.fraction, on_progress)
        if store is not None:
            return store
        raise FileNotFoundError(
            f"data.root: no class folders of images in {root}: looked in {', '.join(_PLACES)}"
        )

    def load_test(self) -> ImageStore | None:
        return self._first(Path(self.root).expanduser(), _TEST_PLACES, 1.0)

    def _first(
        self,
        root: Path,
        places: Sequence[str],
        fraction: float,
        on_progress: Progress | None = None,
    ) -> ImageStore | None:
        """Of the first place that holds class folders of images."""
        for folder in (root / place for place in places):
            classes = subfolders(folder)
            if classes and all(_holds_images(folder) for folder in classes):
                side = self.known_side() or 224
                store = load_files(folder, side, 3, self.cache, on_progress, fraction)
                return store.labelled_by_folder()
        return None


def _holds_images(folder: Path) -> bool:
    return any(is_image(path.name) for path in folder.iterdir())


@dataclass(kw_only=True)
class Cifar(ImageSource):
    """The training images of a CIFAR, never its test images; augmented as in DARTS.

    Args:
        root: holds torchvision's folder, or `train/CLASS/FILE`; either also one level down, in a
            folder of the data set's name.
        download: fetch the published files into `root` if nothing is there.
        cache: folder for decoded image files; `auto` is the user's cache folder, None is memory.
    """

    root: str
    download: bool = False
    cache: str | None = "auto"
    crop_padding: int = 4

    has_test = True
    natural_side = 32
    natural_channels = 3
    name: ClassVar[str]
    archive: ClassVar[str]  # torchvision's folder
    classes: ClassVar[int]

    def load(self, on_progress: Progress | None = None) -> ImageStore:
        root = Path(self.root).expanduser()
        store = self._found(root, "train", on_progress)
        if store is not None:
            return store
        if self.download:
            return self._published(root, "train", download=True)
        check_folder(root)
        raise FileNotFoundError(
            f"data.root: no {self.name} in {root}: looked for {self.archive}/ and for "
            f"{self.classes} class folders in train/, {self.name}/train/, {self.name}/ and ./; "
            f"use data.download=true or another data.root"
        )

    def load_test(self) -> ImageStore | None:
        return self._found(Path(self.root).expanduser(), "test")

    def _found(
        self, root: Path, part: str, on_progress: Progress | None = None
    ) -> ImageStore | None:
        """The `train` or `test` images, where they lie already."""
        places = (root, root / self.name)
        for place in places:
            if (place / self.archive).is_dir():
                return self._published(place, part, download=False)
        parts = ("train", ".") if part == "train" else (part,)
        for folder in [place / part for place in places for part in parts]:
            if len(subfolders(folder)) == self.classes:
                side = self.known_side() or 32
                return load_files(folder, side, 3, self.cache, on_progress).labelled_by_folder()
        return None

    def _published(self, root: Path, part: str, download: bool) -> ImageStore:
        from torchvision import datasets  # seconds to import

        read = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[self.name]
        try:
            # NumPy remarks on the age of the published pickles.
            with warnings.catch_warnings(action="ignore"):
                # Their checksums are compared before anything is unpickled.
                images = read(str(root), train=part == "train", download=download)
        except (RuntimeError, OSError) as error:
            what = "cannot be downloaded" if download else "is damaged: delete it"
            raise OSError(f"data.root: {self.name} in {root} {what}: {error}") from error
        names = [f"{i:05d}" for i in range(len(images.data))]
        side, labels = self.known_side() or 32, np.array(images.targets, np.int64)
        return store_of_arrays(images.data, names, side, labels, images.classes)


@dataclass(kw_only=True)
class Cifar10(Cifar):
    """CIFAR-10: 50,000 training images, 32×32, RGB."""

    name = "cifar10"
    archive = "cifar-10-batches-py"
    classes = 10


@dataclass(kw_only=True)
class Cifar100(Cifar):
    """CIFAR-100: 50,000 training images, 32×32, RGB."""

    name = "cifar100"
    archive = "cifar-100-python"
    classes = 100
