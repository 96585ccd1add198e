"""CIFAR-10 and CIFAR-100, as published or as class folders of image files."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from mae_nas.data.assemble import FileSet, store_of_arrays
from mae_nas.data.files import check_folder, find_images, subfolders
from mae_nas.data.labels import class_labels
from mae_nas.data.source import ImageSource, Progress
from mae_nas.data.store import ImageStore


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

    natural_side: ClassVar[int | None] = 32
    natural_channels: ClassVar[int | None] = 3
    name: ClassVar[str]
    archive: ClassVar[str]  # torchvision's folder
    classes: ClassVar[int]

    def load(self, on_progress: Progress | None = None) -> ImageStore:
        """Read the published files, or decode the class folders, with labels."""
        root = Path(self.root).expanduser()
        places = (root, root / self.name)
        for place in places:
            if (place / self.archive).is_dir():
                return self._published(place, download=False)
        for folder in [place / part for place in places for part in ("train", ".")]:
            if len(subfolders(folder)) == self.classes:
                return self._class_folders(folder, on_progress)
        if self.download:
            return self._published(root, download=True)
        check_folder(root)
        raise FileNotFoundError(
            f"data.root: no {self.name} in {root}: looked for {self.archive}/ and for "
            f"{self.classes} class folders in train/, {self.name}/train/, {self.name}/ and ./; "
            f"use data.download=true or another data.root"
        )

    def _class_folders(self, folder: Path, on_progress: Progress | None) -> ImageStore:
        names, unlisted = find_images(folder)
        files = FileSet(folder, names, self.known_side() or 32, channels=3)
        store = files.store(self.cache, on_progress)
        labels = class_labels(store.files)
        return replace(store, labels=labels, skipped=[*unlisted, *store.skipped])

    def _published(self, root: Path, download: bool) -> ImageStore:
        from torchvision import datasets  # seconds to import

        read = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[self.name]
        try:
            with warnings.catch_warnings():  # NumPy remarks on the age of the published pickles
                warnings.simplefilter("ignore")
                # Their checksums are compared before anything is unpickled.
                images = read(str(root), train=True, download=download)
        except (RuntimeError, OSError) as error:
            what = "cannot be downloaded" if download else "is damaged: delete it"
            raise OSError(f"data.root: {self.name} in {root} {what}: {error}") from error
        names = [f"{i:05d}" for i in range(len(images.data))]
        labels = np.array(images.targets, np.int64)
        return store_of_arrays(images.data, names, self.known_side() or 32, labels)


@dataclass(kw_only=True)
class Cifar10(Cifar):
    """CIFAR-10: 50,000 training images, 32×32, RGB."""

    name: ClassVar[str] = "cifar10"
    archive: ClassVar[str] = "cifar-10-batches-py"
    classes: ClassVar[int] = 10


@dataclass(kw_only=True)
class Cifar100(Cifar):
    """CIFAR-100: 50,000 training images, 32×32, RGB."""

    name: ClassVar[str] = "cifar100"
    archive: ClassVar[str] = "cifar-100-python"
    classes: ClassVar[int] = 100
