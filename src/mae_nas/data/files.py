"""Find the image files of a folder."""

import hashlib
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".npy", ".pbm", ".pgm", ".png"),
    *(".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)


def is_image(name: str) -> bool:
    """Whether a file's suffix is one that is looked for, and it is not hidden."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key under which `frame9` comes before `frame10`."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def check_folder(root: Path) -> None:
    """Raise unless `root` is a folder that can be listed."""
    try:
        os.scandir(root).close()
    except FileNotFoundError:
        raise OSError(
            f"data.root: {root} does not exist; give a folder of images, "
            "or set MAE_NAS_DATA to where the data sets lie"
        ) from None
    except NotADirectoryError:
        raise OSError(f"data.root: {root} is a file; give the folder that holds it") from None
    except OSError as error:
        raise OSError(f"data.root: {root} cannot be listed: {error.strerror}") from error


def subfolders(root: Path) -> list[Path]:
    """The folders in `root` that are not hidden; none if it is no folder."""
    if not root.is_dir():
        return []
    return [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]


def find_images(root: Path) -> "Found":
    """Image files below a folder, by suffix.

    Links are followed; a folder is entered once, whichever links lead to it. Hidden files and
    folders are left alone. Names are relative to `root`, with `/`, in natural order.

    Raises:
        OSError: if `root` is no folder that can be listed.
        ValueError: if it holds no file with a known suffix.
    """
    check_folder(root)
    found = Found()
    found.enter(root, "")
    while found.later:
        found.enter(*found.later.pop(0))
    if not found.images:
        others = ", ".join(f"{count} × {kind}" for kind, count in found.others.most_common(5))
        raise ValueError(
            f"data.root: no image in {root}: looked for {' '.join(SUFFIXES)}, "
            f"found {others or 'no file at all'}"
        )
    found.images.sort(key=natural_key)
    return found


def take_fraction(files: Sequence[str], fraction: float) -> list[str]:
    """A fraction of each class folder, at least one file, the same ones whatever else is there.

    The choice is by a hash of the name, so that smaller fractions are parts of larger ones.
    """
    classes: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(files, key=_hash):
        classes[name.partition("/")[0]].append(name)
    taken: list[str] = []
    for names in classes.values():
        taken += names[: max(1, math.floor(fraction * len(names) + 0.5))]
    return sorted(taken, key=natural_key)


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogateescape")).digest()


class Found:
    """What lies below a folder, as far as it has been walked."""

    def __init__(self) -> None:
        self.images: list[str] = []
        self.unlisted: list[tuple[str, str]] = []  # (folder, reason)
        self.others: Counter[str] = Counter()  # by suffix
        self.links = 0  # to files or folders
        self.entered: set[tuple[int, int]] = set()
        # Links to folders are entered last, so that files are named by their own folders.
        self.later: list[tuple[Path, str]] = []

    def enter(self, folder: Path, name: str) -> None:
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in self.entered:
                return
            self.entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                shown = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            self.unlisted.append((name, f"cannot be listed: {error.strerror}"))
            return
        prefix = f"{name}/" if name else ""
        for entry in sorted(shown, key=lambda entry: natural_key(entry.name)):
            inner = prefix + entry.name
            self.links += entry.is_symlink()
            try:
                is_folder = entry.is_dir()
            except OSError as error:  # a link to itself, or to where nobody may look
                self.unlisted.append((inner, f"cannot be read: {error.strerror}"))
                continue
            if is_folder and entry.is_symlink():
                self.later.append((folder / entry.name, inner))
            elif is_folder:
                self.enter(folder / entry.name, inner)
            elif is_image(entry.name):
                self.images.append(inner)
            else:
                self.others[Path(entry.name).suffix.lower() or "files without a suffix"] += 1
