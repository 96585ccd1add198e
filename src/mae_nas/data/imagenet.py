"""ImageNet, or any class folders of photographs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from mae_nas.data.assemble import FileSet
from mae_nas.data.files import check_folder, find_images, is_image, subfolders
from mae_nas.data.labels import class_labels, take_fraction
from mae_nas.data.source import ImageSource, Progress
from mae_nas.data.store import ImageStore

_PLACES = ("imagenet/train", "imagenet-sample/train", "train", ".")


@dataclass(kw_only=True)
class ImageNet(ImageSource):
    """Training images in class folders; RGB.

    Args:
        root: holds `imagenet/train/CLASS/FILE`, `imagenet-sample/train/…`, `train/…` or the class
            folders themselves; the first that exists is used.
        fraction: of each class, in (0, 1].
        cache: folder for decoded image files; `auto` is the user's cache folder, None is memory.
    """

    root: str
    fraction: float = 1.0
    cache: str | None = "auto"

    natural_side: ClassVar[int | None] = 224
    natural_channels: ClassVar[int | None] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise ValueError(f"data.fraction: {self.fraction} is not in (0, 1]")

    def load(self, on_progress: Progress | None = None) -> ImageStore:
        """Decode the chosen files, or read the cache, with labels."""
        folder = self._folder()
        names, unlisted = find_images(folder)
        chosen = take_fraction(names, self.fraction)
        files = FileSet(folder, chosen, self.known_side() or 224, channels=3)
        store = files.store(self.cache, on_progress)
        labels = class_labels(store.files)
        return replace(store, labels=labels, skipped=[*unlisted, *store.skipped])

    def _folder(self) -> Path:
        root = Path(self.root).expanduser()
        check_folder(root)
        for folder in (root / place for place in _PLACES):
            classes = subfolders(folder)
            if classes and all(_holds_images(folder / name) for name in classes):
                return folder
        raise FileNotFoundError(
            f"data.root: no class folders of images in {root}: looked in {', '.join(_PLACES)}"
        )


def _holds_images(folder: Path) -> bool:
    return any(is_image(path.name) for path in folder.iterdir())
