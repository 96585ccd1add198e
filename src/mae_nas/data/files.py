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


def find_images(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Image files below a folder, by suffix, and (folder, reason) of what cannot be listed.

    Links are followed; a folder is entered once, whichever links lead to it. Hidden files and
    folders are left alone. Names are relative to `root`, with `/`, in natural order.

    Raises:
        OSError: if `root` is no folder that can be listed.
        ValueError: if it holds no file with a known suffix.
    """
    check_folder(root)
    walk = _Walk()
    walk.enter(root, "")
    while walk.links:
        walk.enter(*walk.links.pop(0))
    if not walk.images:
        found = ", ".join(f"{count} × {kind}" for kind, count in walk.others.most_common(5))
        raise ValueError(
            f"data.root: no image in {root}: looked for {' '.join(SUFFIXES)}, "
            f"found {found or 'no file at all'}"
        )
    return sorted(walk.images, key=natural_key), walk.unlisted


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


class _Walk:
    def __init__(self) -> None:
        self.entered: set[tuple[int, int]] = set()
        self.images: list[str] = []
        self.unlisted: list[tuple[str, str]] = []
        self.others: Counter[str] = Counter()
        # Entered last, so that files are named by their own folders.
        self.links: list[tuple[Path, str]] = []

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
            try:
                is_folder = entry.is_dir()
            except OSError as error:  # a link to itself, or to where nobody may look
                self.unlisted.append((inner, f"cannot be read: {error.strerror}"))
                continue
            if is_folder and entry.is_symlink():
                self.links.append((folder / entry.name, inner))
            elif is_folder:
                self.enter(folder / entry.name, inner)
            elif is_image(entry.name):
                self.images.append(inner)
            else:
                self.others[Path(entry.name).suffix.lower() or "files without a suffix"] += 1
