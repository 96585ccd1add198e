"""Any folder of images."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mae_nas.data.assemble import FileSet
from mae_nas.data.files import find_images
from mae_nas.data.source import ImageSource, Progress
from mae_nas.data.store import ImageStore


@dataclass(kw_only=True)
class Folder(ImageSource):
    """A folder of image files, flat or nested, without labels.

    `side=auto` takes the median short side of the files and picks the nearest of 32, 64, 96, 128,
    224 pixels. Mirroring is off, since an image of unknown kind may not survive it.

    Args:
        root: the folder.
        channels: `auto` is 1 if all images are grey, 3 for pictures, N for stacks of N.
        cache: folder for decoded images; `auto` is the user's cache folder, None is memory.
    """

    root: str
    channels: int | Literal["auto"] = "auto"
    cache: str | None = "auto"
    flip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels != "auto" and self.channels < 1:
            raise ValueError(
                f"data.channels: {self.channels} is not a number of channels; use auto"
            )

    def known_channels(self) -> int | None:
        """The channels if they are set by hand."""
        return None if self.channels == "auto" else self.channels

    def load(self, on_progress: Progress | None = None) -> ImageStore:
        """Decode all readable files, or read the cache."""
        root = Path(self.root).expanduser()
        names, unlisted = find_images(root)
        store = FileSet(root, names, self.side, self.channels).store(self.cache, on_progress)
        return dataclasses.replace(store, skipped=[*unlisted, *store.skipped])
