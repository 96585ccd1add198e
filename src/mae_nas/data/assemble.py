"""Build stores: from arrays in memory, or from files that are decoded once into a cache."""

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mae_nas.data import convert
from mae_nas.data.arrays import Header, UnreadableImageError
from mae_nas.data.cache import Cache, Manifest
from mae_nas.data.decode import decode, quiet, read_header
from mae_nas.data.source import Progress
from mae_nas.data.store import ImageStore, Moments

T = TypeVar("T")
R = TypeVar("R")


class Sink(Protocol):
    """Where decoded pixels go: a file of the cache, or memory."""

    def write(self, data: bytes, /) -> int:
        """Append pixels."""
        ...


@dataclass(frozen=True)
class FileSet:
    """Image files that become one store.

    Args:
        root: folder that the names are relative to.
        names: files in the order of the store.
        side: in pixels; `auto` is chosen from the files' headers.
        channels: `auto` is chosen from the files' headers.
    """

    root: Path
    names: Sequence[str]
    side: int | Literal["auto"]
    channels: int | Literal["auto"]

    def store(self, cache: str | None, on_progress: Progress | None = None) -> ImageStore:
        """Read the cache, or decode all files, in threads, and write it.

        Args:
            cache: folder; `auto` is the user's cache folder, None keeps the images in memory.
            on_progress: called with (done, total).

        Raises:
            ValueError: if no file is readable.
            OSError: if the cache cannot be written.
        """
        place = Cache.at(cache, self.root, self.names, f"{self.side} {self.channels}")
        if place is not None and (store := place.read()) is not None:
            return store
        with quiet(), ThreadPoolExecutor(cpu_count()) as pool:
            job = _Decoding(self, pool, on_progress or (lambda _done, _total: None))
            if place is None:
                memory = io.BytesIO()
                manifest = job.run(memory)
                return manifest.store(np.frombuffer(memory.getbuffer(), manifest.dtype))
            return place.write(job.expected_bytes, job.run)


class _Decoding:
    """Two passes over the files: headers decide side, channels and depth; then the pixels."""

    def __init__(self, files: FileSet, pool: ThreadPoolExecutor, on_progress: Progress) -> None:
        self.files, self.pool, self.on_progress = files, pool, on_progress
        self.done = 0
        self.skipped: list[tuple[str, str]] = []
        headers: list[Header] = []
        self.names: list[str] = []
        for name, header in self._each(files.names, self._header):
            if isinstance(header, UnreadableImageError):
                self.skipped.append((name, str(header)))
                self._advance()  # the pixels of this file will not be asked for
            else:
                self.names.append(name)
                headers.append(header)
        self._require(bool(headers))
        self.side = convert.choose_side(headers, files.side)
        self.channels = convert.choose_channels(headers, files.channels)
        self.dtype = convert.choose_dtype(headers)
        sizes = (convert.scaled_size(h.height, h.width, self.side) for h in headers)
        item = self.channels * np.dtype(self.dtype).itemsize
        self.expected_bytes = item * sum(height * width for height, width in sizes)

    def run(self, sink: Sink) -> Manifest:
        """Write all pixels; tell what has been written."""
        names: list[str] = []
        sizes: list[tuple[int, int]] = []
        digests: list[bytes] = []
        for name, result in self._each(self.names, self._pixels):
            if isinstance(result, UnreadableImageError):
                self.skipped.append((name, str(result)))
                continue
            array, digest = result
            sink.write(convert.to_stored(array).tobytes())
            names.append(name)
            sizes.append(array.shape[:2])
            digests.append(digest)
        self._require(bool(names))
        return Manifest(
            files=names,
            sizes=np.array(sizes, np.int64),
            digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16),
            skipped=self.skipped,
            side=self.side,
            channels=self.channels,
            dtype="int16" if self.dtype == "uint16" else self.dtype,
        )

    def _each(
        self, names: Sequence[str], function: Callable[[str], R]
    ) -> Iterator[tuple[str, R | UnreadableImageError]]:
        def attempt(name: str) -> R | UnreadableImageError:
            try:
                return function(name)
            except UnreadableImageError as reason:
                return reason

        for name, result in zip(names, _in_order(self.pool, attempt, names), strict=True):
            yield name, result
            self._advance()

    def _advance(self) -> None:
        self.done += 1
        self.on_progress(self.done, 2 * len(self.files.names))

    def _header(self, name: str) -> Header:
        return read_header(self.files.root / name)

    def _pixels(self, name: str) -> tuple[NDArray[np.generic], bytes]:
        try:
            content = (self.files.root / name).read_bytes()
        except OSError as error:
            raise UnreadableImageError(error.strerror or str(error)) from error
        array = convert.conform(decode(content), self.side, self.channels, self.dtype)
        return array, digest_of(content)

    def _require(self, found: bool) -> None:
        if not found:
            name, reason = self.skipped[0]
            raise ValueError(
                f"data.root: no readable image in {self.files.root}: all {len(self.skipped)} "
                f"image files were skipped, the first one, {name}: {reason}"
            )


def digest_of(content: bytes) -> bytes:
    """16 bytes that are equal for exact duplicates only."""
    return hashlib.blake2b(content, digest_size=16).digest()


def store_of_arrays(
    images: Iterable[NDArray[np.generic]],
    names: Sequence[str],
    side: int,
    labels: NDArray[np.int64] | None = None,
) -> ImageStore:
    """A store in memory; short sides are resized to `side`.

    Args:
        images: (H, W, C) each, of one depth (uint8, uint16 or float32).
        names: one per image.
        side: in pixels.
        labels: (N,), int64.
    """
    tables: list[NDArray[np.generic]] = []
    sizes: list[tuple[int, int]] = []
    digests: list[bytes] = []
    for image in images:
        digests.append(digest_of(np.ascontiguousarray(image).tobytes()))
        resized = convert.resize(image, side)
        sizes.append(resized.shape[:2])
        tables.append(convert.to_stored(resized))
    pixels = np.concatenate(tables)
    size = np.array(sizes, np.int64)
    return ImageStore(
        pixels=pixels,
        height=size[:, 0],
        width=size[:, 1],
        side=side,
        files=names,
        moments=Moments.of(pixels),
        digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16),
        labels=labels,
    )


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]
) -> Iterator[R]:
    """Like `pool.map`, with a bounded number of results waiting: memory stays flat."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= 4 * (cpu_count() or 1):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
