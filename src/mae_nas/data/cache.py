"""Decoded images on disk: a folder per data set, written at once or not at all, never trusted."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from mae_nas.data.arrays import Header
from mae_nas.data.store import ImageStore, Moments, map_pixels

_FORMAT = "mae_nas.images/2"  # part of the key: a new one when decoding changes
_PARTIAL, _STALE_SECONDS = ".partial-", 24 * 3600


@dataclass(frozen=True)
class Cache:
    """One data set's place in the cache folder: JSON and raw arrays, nothing that executes."""

    folder: Path

    @classmethod
    def at(cls, cache: str | None, root: Path, names: Sequence[str], options: str) -> Self | None:
        """The place of some files, keyed by their paths, sizes, times and how they are decoded."""
        if cache is None:
            return None
        # Two folders may agree in names, sizes and times, and yet hold other pixels.
        key = hashlib.blake2b(digest_size=16)
        for line in (_FORMAT, options, str(root.resolve()), *(_state(root, n) for n in names)):
            key.update(f"{line}\n".encode(errors="surrogateescape"))
        if cache == "auto":
            cache = f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/mae_nas"
        return cls(Path(cache).expanduser().absolute() / key.hexdigest())

    def read(self) -> ImageStore | None:
        """The store, or None if there is none or it is not what it claims to be."""
        try:
            meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
            sizes = np.load(self.folder / "sizes.npy", allow_pickle=False)
            digests = np.load(self.folder / "digests.npy", allow_pickle=False)
            mean, std = (np.array(meta[name], float) for name in ("mean", "std"))
            file, count, channels = self.folder / "pixels.bin", len(meta["files"]), meta["channels"]
            dtype, shape = np.dtype(meta["dtype"]), (int(sizes.prod(axis=1).sum()), channels)
            headers = [Header(*fields) for fields in meta["headers"]]
            is_whole = (
                len(headers) == count
                and meta["key"] == self.folder.name
                and dtype.name in ("uint8", "int16", "float32")
                and sizes.shape == (count, 2)
                and digests.shape == (count, 16)
                and mean.shape == std.shape == (channels,)
                and int(sizes.min()) >= meta["side"]
                and file.stat().st_size == shape[0] * channels * dtype.itemsize
            )
            if not is_whole:
                return None
            return ImageStore(
                pixels=map_pixels(file, dtype, shape),
                sizes=sizes,
                side=meta["side"],
                files=meta["files"],
                moments=Moments(mean, std, meta["low"], meta["high"]),
                digests=digests,
                skipped=[(name, reason) for name, reason in meta["skipped"]],
                headers=headers,
                cache=self.folder,
            )
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None

    def write(self, expected: int, produce: Callable[[BinaryIO], ImageStore]) -> ImageStore:
        """Let `produce` write the pixels beside the final place, then rename the folder at once.

        Args:
            expected: bytes of the pixels; refused if they cannot fit, before anything is decoded.
            produce: writes the pixels to a file and returns their store.
        """
        parent = self.folder.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _sweep(parent)
            if (free := shutil.disk_usage(parent).free) < expected:
                needed = f"{expected / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
                raise OSError(errno.ENOSPC, needed)
            workspace = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=parent))
            try:
                (workspace / "new").mkdir()
                with (workspace / "new" / "pixels.bin").open("wb") as file:
                    self._describe(workspace / "new", produce(file))
                self._publish(workspace)
            finally:
                shutil.rmtree(workspace, ignore_errors=True)
        except OSError as error:
            raise OSError(
                f"data.cache: cannot write the decoded images to {parent}: "
                f"{error.strerror or error}; use data.cache=FOLDER, or data.cache=null for memory"
            ) from error
        store = self.read()
        if store is None:
            raise OSError(f"data.cache: {self.folder} was changed by others while it was written")
        return store

    def _describe(self, folder: Path, store: ImageStore) -> None:
        np.save(folder / "sizes.npy", store.sizes)
        np.save(folder / "digests.npy", store.digests)
        meta = {
            "key": self.folder.name,
            "files": store.files,
            "skipped": store.skipped,
            "headers": [astuple(header) for header in store.headers],
            "side": store.side,
            "channels": store.channels,
            "dtype": store.pixels.dtype.name,
            **vars(store.moments),
        }
        text = json.dumps(meta, default=np.ndarray.tolist)
        (folder / "meta.json").write_text(text, encoding="utf-8")

    def _publish(self, workspace: Path) -> None:
        if self.read() is None:  # absent or damaged: out of the way at once, deleted later
            with contextlib.suppress(FileNotFoundError):
                self.folder.replace(workspace / "old")
        try:
            (workspace / "new").replace(self.folder)
        except OSError as error:  # another process was faster, with the same images
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _state(root: Path, name: str) -> str:
    try:
        status = (root / name).stat()
    except OSError:
        return f"{name}\0unreadable"
    return f"{name}\0{status.st_size} {status.st_mtime_ns}"


def _sweep(parent: Path) -> None:
    """Delete what killed writers left behind a day ago or earlier."""
    for partial in parent.glob(f"{_PARTIAL}*"):
        if partial.stat().st_mtime < time.time() - _STALE_SECONDS:
            shutil.rmtree(partial, ignore_errors=True)
