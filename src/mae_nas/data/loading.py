"""Build stores: from arrays in memory, or from files that are decoded once into a cache."""

import hashlib
import io
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from os import cpu_count
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mae_nas.data import convert
from mae_nas.data.arrays import MAX_PIXELS, UnreadableImageError
from mae_nas.data.cache import Cache
from mae_nas.data.decode import decode, read_header
from mae_nas.data.files import find_images, take_fraction
from mae_nas.data.source import Progress
from mae_nas.data.store import ImageStore, Moments, map_pixels

R = TypeVar("R")


def load_files(
    root: Path,
    side: int | Literal["auto"],
    channels: int | Literal["auto"],
    cache: str | None,
    on_progress: Progress | None = None,
    fraction: float = 1.0,
) -> ImageStore:
    """All images below a folder: read from the cache, or decoded in threads and written to it.

    Args:
        root: the folder.
        side: in pixels; `auto` is chosen from the files' headers.
        channels: `auto` is chosen from the files' headers.
        cache: folder; `auto` is the user's cache folder, None keeps the images in memory.
        on_progress: called with (done, total).
        fraction: of each class folder.

    Raises:
        ValueError: if no file is readable.
        OSError: if the folder cannot be listed or the cache cannot be written.
    """
    found = find_images(root)
    names = take_fraction(found.images, fraction)
    place = Cache.at(cache, root, names, f"{side} {channels}")
    store = None if place is None else place.read()
    if store is None:
        # What decoders warn of matters only if it becomes a reason. Filters belong to the whole
        # process, so they are set around the threads, not for each file.
        with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(cpu_count()) as pool:
            job = _Decoding(root, names, pool, on_progress or (lambda _done, _total: None))
            expected = job.read_headers(side, channels)
            store = job.run(io.BytesIO()) if place is None else place.write(expected, job.run)
    return replace(store, skipped=[*found.unlisted, *store.skipped])


class _Decoding:
    """Two passes over the files: headers decide side, channels and depth; then the pixels."""

    def __init__(
        self, root: Path, names: Sequence[str], pool: ThreadPoolExecutor, on_progress: Progress
    ) -> None:
        self.root, self.names, self.pool, self.on_progress = root, names, pool, on_progress
        self.count, self.done = len(names), 0
        self.skipped: list[tuple[str, str]] = []

    def read_headers(self, side: int | Literal["auto"], channels: int | Literal["auto"]) -> int:
        """Choose what is `auto`; the bytes that all pixels will take."""
        found = self.headers = dict(self._each(lambda name: read_header(self.root / name)))
        self._advance(len(self.skipped))  # their pixels will not be asked for
        self.names, headers = list(found), list(found.values())
        self.side = convert.choose_side(headers, side)
        self.channels = convert.choose_channels(headers, channels)
        self.dtype = convert.choose_dtype(headers)
        sizes = (math.prod(convert.scaled_size(h.height, h.width, self.side)) for h in headers)
        fitting = sum(size for size in sizes if size <= MAX_PIXELS)  # the others will be skipped
        return fitting * self.channels * np.dtype(self.dtype).itemsize

    def run(self, file: BinaryIO) -> ImageStore:
        """Write all pixels to a file; the store that reads them there."""
        store = _stack(((name, *image) for name, image in self._each(self._image)), self.side, file)
        headers = [self.headers[name] for name in store.files]
        dtype = convert.choose_dtype(headers)
        if dtype == self.dtype:
            return replace(store, skipped=self.skipped, headers=headers)
        # A file that was skipped had the widest depth: once more, without those that were skipped.
        self.names, self.dtype, self.done = list(store.files), dtype, self.done - len(store)
        del store  # it holds the memory, or maps the file
        file.seek(0)
        file.truncate()
        return self.run(file)

    def _image(self, name: str) -> tuple[NDArray[np.generic], bytes]:
        try:
            content = (self.root / name).read_bytes()
        except OSError as error:
            raise UnreadableImageError(error.strerror or str(error)) from error
        array = convert.conform(decode(content), self.side, self.channels, self.dtype)
        return array, _digest_of(content)

    def _each(self, function: Callable[[str], R]) -> Iterator[tuple[str, R]]:
        """What the function says of each file that is readable; the reasons of the others."""
        for name, answer in self._in_order(function):
            try:
                result = answer.result()
            except UnreadableImageError as reason:
                self.skipped.append((name, str(reason)))
            else:
                yield name, result
            self._advance(1)
        if len(self.skipped) == self.count:
            name, reason = self.skipped[0]
            raise ValueError(
                f"data.root: no readable image in {self.root}: all {self.count} "
                f"image files were skipped, the first one, {name}: {reason}"
            )

    def _in_order(self, function: Callable[[str], R]) -> Iterator[tuple[str, Future[R]]]:
        """Like the pool's `map`, with a bounded number of results waiting: memory stays flat."""
        waiting: deque[tuple[str, Future[R]]] = deque()
        for name in self.names:
            waiting.append((name, self.pool.submit(function, name)))
            if len(waiting) >= 4 * (cpu_count() or 1):
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    def _advance(self, files: int) -> None:
        for _ in range(files):
            self.done += 1
            self.on_progress(self.done, 2 * self.count)


def store_of_arrays(
    images: Iterable[NDArray[np.generic]],
    names: Sequence[str],
    side: int,
    labels: NDArray[np.int64] | None = None,
    classes: Sequence[str] = (),
) -> ImageStore:
    """A store in memory; short sides are resized to `side`.

    Args:
        images: (H, W, C) each, of one depth (uint8, uint16 or float32).
        names: one per image.
        side: in pixels.
        labels: (N,), int64.
        classes: their names.
    """
    resized = (
        (name, convert.resize(image, side), _digest_of(image.tobytes()))
        for name, image in zip(names, images, strict=True)
    )
    return replace(_stack(resized, side, io.BytesIO()), labels=labels, classes=classes)


def _stack(
    images: Iterable[tuple[str, NDArray[np.generic], bytes]], side: int, file: BinaryIO
) -> ImageStore:
    """Write (name, pixels, digest) to a file, or memory, and open it as a store."""
    facts: list[tuple[str, tuple[int, ...], bytes]] = []
    stored = np.empty((0, 0), np.uint8)
    for name, array, digest in images:
        stored = convert.to_stored(array)
        file.write(stored.tobytes())
        facts.append((name, array.shape[:2], digest))
    files, sizes, digests = zip(*facts, strict=True)
    if isinstance(file, io.BytesIO):
        pixels = np.frombuffer(file.getbuffer(), stored.dtype).reshape(-1, stored.shape[1])
    else:
        file.flush()
        rows = file.tell() // stored[0].nbytes
        pixels = map_pixels(file.name, stored.dtype, (rows, stored.shape[1]))
    return ImageStore(
        pixels=pixels,
        sizes=np.array(sizes, np.int64),
        side=side,
        files=files,
        moments=Moments.of(pixels),
        digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16),
    )


def _digest_of(content: bytes) -> bytes:
    """16 bytes that are equal for exact duplicates only."""
    return hashlib.blake2b(content, digest_size=16).digest()
