"""Find the image files of a folder."""

import os
import re
from collections import Counter
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
    if not root.exists():
        raise FileNotFoundError(f"data.root: {root} does not exist; give a folder of images")
    if not root.is_dir():
        raise NotADirectoryError(f"data.root: {root} is a file; give the folder that holds it")
    try:
        os.scandir(root).close()
    except OSError as error:
        raise OSError(f"data.root: {root} cannot be listed: {error.strerror}") from error


def subfolders(root: Path) -> list[str]:
    """Names of the folders in `root` that are not hidden, in natural order."""
    if not root.is_dir():
        return []
    names = [p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return sorted(names, key=natural_key)


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
        folders = [entry for entry in shown if entry.is_dir()]
        for entry in sorted(folders, key=lambda entry: natural_key(entry.name)):
            inner = folder / entry.name, prefix + entry.name
            if entry.is_symlink():
                self.links.append(inner)
            else:
                self.enter(*inner)
        for entry in shown:
            if is_image(entry.name) and not entry.is_dir():
                self.images.append(prefix + entry.name)
            elif not entry.is_dir():
                self.others[Path(entry.name).suffix.lower() or "files without a suffix"] += 1
