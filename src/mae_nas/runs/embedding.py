"""Features of many images as a file, written as they are computed and gone on with after a stop.

Beside OUTPUT, while it is made, lies OUTPUT.part: the table so far, and what it is of. Memory holds
one batch and the names of the files, however many images there are.
"""

import contextlib
import csv
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from mae_nas.batch import Batch
from mae_nas.data import ImageStore
from mae_nas.network.encoder import Encoder
from mae_nas.runs.files import read_json, replacing, write_json

_FLUSHED = 16  # batches that a kill may cost
_HELD: dict[Path, int] = {}  # open locks of this process


@torch.inference_mode()
def features_of(network: Encoder, batches: Iterable[Batch]) -> Iterator[NDArray[np.float32]]:
    """(B, D) of each batch, on the CPU; ValueError of the first that is not finite."""
    for batch in batches:
        rows = network.features(batch.image).float().cpu().numpy()
        if not np.isfinite(rows).all():
            first, last = (int(batch.index[i]) + 1 for i in (0, -1))
            raise ValueError(
                f"checkpoint: features of images {first:,} to {last:,} are not finite: the "
                "network's weights or statistics have run away"
            )
        yield rows


def fingerprint(file: Path) -> str:
    """Of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class PartialTable:
    """The table of OUTPUT while it grows.

    Args:
        output: the file that it becomes.
        rows: images.
        columns: features of each.
        identity: of network, images and batches: with another one it begins anew.
    """

    output: Path
    rows: int
    columns: int
    identity: str

    @property
    def folder(self) -> Path:
        return self.output.with_name(f"{self.output.name}.part")

    @property
    def _state(self) -> Path:
        return self.folder / "state.json"

    @property
    def _table(self) -> Path:
        return self.folder / "features.npy"

    def _lock(self) -> None:
        """Hold the folder until this process ends; ValueError if another one does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "lock"
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # One that was removed meanwhile, by a process that came to its end, holds nothing.
                if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:
                    break
            except BlockingIOError:
                os.close(file)
                what = f"output: {self.output} is being made by another process"
                raise ValueError(what) from None
            except OSError:
                os.close(file)
                raise
            os.close(file)
        _HELD[self.folder.resolve()] = file

    def release(self) -> None:
        """Let go of the folder, whatever lies in it."""
        if (file := _HELD.pop(self.folder.resolve(), None)) is not None:
            os.close(file)

    def open(self) -> tuple[NDArray[np.float32], int]:
        """The table on disk, which is held from now on, and how many of its rows are done.

        Raises:
            ValueError: another process holds it, or has made OUTPUT.
        """
        done = 0
        self.release()
        self._lock()
        if self.output.exists():
            self.discard()
            raise ValueError(
                f"output: {self.output} is there already; choose another, or remove it"
            )
        table = self._table
        try:
            state = read_json(self._state)
            if isinstance(state, dict) and state.get("identity") == self.identity:
                done = int(state["done"])
            opened = np.lib.format.open_memmap(table, "r+")
            if done and opened.shape == (self.rows, self.columns) and 0 <= done <= self.rows:
                return opened, done
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or damaged: anew
        self._state.unlink(missing_ok=True)
        shape = (self.rows, self.columns)
        return np.lib.format.open_memmap(table, "w+", np.float32, shape), 0

    def fill(
        self,
        table: NDArray[np.float32],
        done: int,
        features: Iterable[NDArray[np.float32]],
        on_rows: Callable[[int, int], None],
    ) -> None:
        """Write the rows from `done` on; what is on disk is recorded as it gets there.

        Where `features` raises ValueError nothing is left: there is nothing to go on with.
        """
        assert isinstance(table, np.memmap)
        try:
            for count, block in enumerate(features, 1):
                table[done : done + len(block)] = block
                done += len(block)
                if count % _FLUSHED == 0 or done == self.rows:
                    table.flush()
                    write_json(self._state, {"identity": self.identity, "done": done})
                on_rows(done, self.rows)
        except ValueError:
            self.discard()
            raise

    def finish(self, table: NDArray[np.float32], files: Sequence[str]) -> None:
        """Write OUTPUT, whole or not at all, and remove what it was made from."""
        with replacing(self.output) as beside:
            WRITERS[self.output.suffix](beside, table, files)
        self.discard()

    def discard(self) -> None:
        """Remove what OUTPUT was to be made from, and let go of the folder."""
        for file in (self._table, self._state, self.folder / "lock"):
            file.unlink(missing_ok=True)
        self.release()
        with contextlib.suppress(OSError):  # someone else's files are in it
            self.folder.rmdir()


def _write_npz(file: Path, table: NDArray[np.float32], files: Sequence[str]) -> None:
    """Arrays `features` (N, D) float32 and `files` (N,), block by block."""
    with ZipFile(file, "w") as archive:
        for name, array in (("features", table), ("files", np.array(files, dtype=np.str_))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array(part, np.asarray(array), allow_pickle=False)


def _write_csv(file: Path, table: NDArray[np.float32], files: Sequence[str]) -> None:
    """A line for each image: its file, and features with as many digits as they have."""
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(["file", *(f"feature_{column}" for column in range(table.shape[1]))])
        for name, row in zip(files, table, strict=True):
            writer.writerow([name, *map(str, row)])


WRITERS = {".npz": _write_npz, ".csv": _write_csv}
"""By the suffix of the output."""


def identity_of(store: ImageStore, *parts: object) -> str:
    """Of all that the table depends on: the images, in their order, and other parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(store.digests).data)
    for name in store.files:
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()
