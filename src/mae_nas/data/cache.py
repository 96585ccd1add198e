"""Decoded images on disk: a folder per data set, written at once or not at all, never trusted."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from mae_nas.data.store import ImageStore, Moments, map_pixels

_FORMAT = "mae_nas.images/1"  # part of the key: a new one when decoding changes
_PARTIAL, _STALE_SECONDS = ".partial-", 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All of a store but its pixels and their moments."""

    files: Sequence[str]
    sizes: NDArray[np.int64]
    digests: NDArray[np.uint8]
    skipped: Sequence[tuple[str, str]]
    side: int
    channels: int
    dtype: str

    @property
    def pixels(self) -> int:
        """Number of pixels of all images."""
        return int(self.sizes.prod(axis=1).sum())

    def store(
        self,
        pixels: NDArray[np.generic],
        moments: Moments | None = None,
        cache: Path | None = None,
    ) -> ImageStore:
        """The store of these images; moments are measured if they are not given."""
        pixels = pixels.reshape(-1, self.channels)
        return ImageStore(
            pixels=pixels,
            height=np.ascontiguousarray(self.sizes[:, 0]),
            width=np.ascontiguousarray(self.sizes[:, 1]),
            side=self.side,
            files=self.files,
            moments=moments or Moments.of(pixels),
            digests=self.digests,
            skipped=self.skipped,
            cache=cache,
        )


@dataclass(frozen=True)
class Cache:
    """One data set's place in the cache folder: JSON and raw arrays, nothing that executes."""

    folder: Path

    @classmethod
    def at(cls, cache: str | None, root: Path, names: Sequence[str], options: str) -> Self | None:
        """The place of some files, keyed by their names, sizes, times and how they are decoded."""
        if cache is None:
            return None
        key = hashlib.blake2b(f"{_FORMAT}\n{options}\n".encode(), digest_size=16)
        for name in sorted(names):
            try:
                status = (root / name).stat()
                state = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:
                state = "unreadable"
            key.update(f"{name}\0{state}\n".encode(errors="surrogateescape"))
        return cls(cls._parent(cache) / key.hexdigest())

    @staticmethod
    def _parent(cache: str) -> Path:
        if cache != "auto":
            return Path(cache).expanduser().absolute()
        home = os.environ.get("XDG_CACHE_HOME")
        return (Path(home) if home else Path("~/.cache").expanduser()) / "mae_nas"

    def read(self) -> ImageStore | None:
        """The store, or None if there is none or it is not what it claims to be."""
        try:
            meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
            if meta["key"] != self.folder.name:
                return None
            manifest = Manifest(
                files=meta["files"],
                sizes=np.load(self.folder / "sizes.npy", allow_pickle=False),
                digests=np.load(self.folder / "digests.npy", allow_pickle=False),
                skipped=[(name, reason) for name, reason in meta["skipped"]],
                side=meta["side"],
                channels=meta["channels"],
                dtype=meta["dtype"],
            )
            moments = Moments(
                np.array(meta["mean"], float),
                np.array(meta["std"], float),
                meta["low"],
                meta["high"],
            )
            return self._checked(manifest, moments)
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None

    def _checked(self, manifest: Manifest, moments: Moments) -> ImageStore | None:
        count, file = len(manifest.files), self.folder / "pixels.bin"
        dtype, shape = np.dtype(manifest.dtype), (manifest.pixels, manifest.channels)
        is_whole = (
            manifest.dtype in ("uint8", "int16", "float32")
            and manifest.sizes.shape == (count, 2)
            and manifest.digests.shape == (count, 16)
            and moments.mean.shape == moments.std.shape == (manifest.channels,)
            and int(manifest.sizes.min()) >= manifest.side
            and file.stat().st_size == shape[0] * shape[1] * dtype.itemsize
        )
        pixels = map_pixels(file, dtype, shape) if is_whole else None
        return None if pixels is None else manifest.store(pixels, moments, self.folder)

    def write(self, expected: int, produce: Callable[[BinaryIO], Manifest]) -> ImageStore:
        """Let `produce` write the pixels beside the final place, then rename the folder at once.

        Args:
            expected: bytes of the pixels; refused if they cannot fit, before anything is decoded.
            produce: writes the pixels and returns what they are.
        """
        parent = self.folder.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _sweep(parent)
            if (free := shutil.disk_usage(parent).free) < expected:
                needed = f"{expected / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
                raise OSError(errno.ENOSPC, needed)
            partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=parent))
            try:
                with (partial / "pixels.bin").open("wb") as file:
                    manifest = produce(file)
                self._describe(partial, manifest)
                self._publish(partial)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise OSError(
                f"data.cache: cannot write the decoded images to {parent}: "
                f"{error.strerror or error}; use data.cache=FOLDER, or data.cache=null for memory"
            ) from error
        store = self.read()
        if store is None:
            raise OSError(f"data.cache: {self.folder} was changed by others while it was written")
        return store

    def _describe(self, partial: Path, manifest: Manifest) -> None:
        shape = (manifest.pixels, manifest.channels)
        moments = Moments.of(map_pixels(partial / "pixels.bin", np.dtype(manifest.dtype), shape))
        np.save(partial / "sizes.npy", manifest.sizes)
        np.save(partial / "digests.npy", manifest.digests)
        meta = {
            "key": self.folder.name,
            "files": list(manifest.files),
            "skipped": list(manifest.skipped),
            "side": manifest.side,
            "channels": manifest.channels,
            "dtype": manifest.dtype,
            "mean": moments.mean.tolist(),
            "std": moments.std.tolist(),
            "low": moments.low,
            "high": moments.high,
        }
        (partial / "meta.json").write_text(json.dumps(meta), encoding="utf-8")

    def _publish(self, partial: Path) -> None:
        for _ in range(3):
            try:
                partial.replace(self.folder)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            if self.read() is not None:
                return  # another process was faster, with the same images
            _discard(self.folder)
        raise OSError(errno.EEXIST, f"{self.folder} cannot be replaced")


def _discard(folder: Path) -> None:
    """Take a damaged entry out of the way at once, then delete it."""
    trash = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder.parent))
    folder.replace(trash / folder.name)
    shutil.rmtree(trash, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Delete what killed writers left behind a day ago or earlier."""
    for partial in parent.glob(f"{_PARTIAL}*"):
        if partial.stat().st_mtime < time.time() - _STALE_SECONDS:
            shutil.rmtree(partial, ignore_errors=True)
