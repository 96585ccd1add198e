import os
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from mae_nas.data import Folder, ImageStore
from mae_nas.data.cache import Cache
from mae_nas.data.loading import store_of_arrays


def same(one: ImageStore, other: ImageStore) -> bool:
    return (
        np.array_equal(one.pixels, other.pixels)
        and one.pixels.dtype == other.pixels.dtype
        and list(one.files) == list(other.files)
        and list(one.skipped) == list(other.skipped)
        and np.array_equal(one.sizes, other.sizes)
        and np.array_equal(one.digests, other.digests)
        and np.array_equal(one.moments.mean, other.moments.mean)
        and np.array_equal(one.moments.std, other.moments.std)
    )


def only_entry(home: Path) -> Path:
    (entry,) = (home / "mae_nas").iterdir()
    return entry


def test_cache_gives_what_memory_gives(numbered: Callable[..., Path], cache_home: Path) -> None:
    root = numbered(7)
    (root / "broken.png").touch()
    in_memory = Folder(root=str(root), side=4, cache=None).load()
    assert not list(cache_home.iterdir())
    written = Folder(root=str(root), side=4).load()
    assert isinstance(written.pixels, np.memmap)
    assert same(in_memory, written)
    assert written.cache == only_entry(cache_home)


def test_cache_is_read_without_decoding(numbered: Callable[..., Path]) -> None:
    root = numbered(3)
    calls: list[int] = []
    for _ in range(2):
        Folder(root=str(root)).load(lambda done, _total: calls.append(done))
    assert len(calls) == 6


def test_cache_depends_on_names_sizes_times_and_options(
    numbered: Callable[..., Path], tmp_path: Path
) -> None:
    root, cache = numbered(3), tmp_path / "cache"

    def entries(**options: object) -> int:
        Folder(root=str(root), cache=str(cache), **options).load()  # type: ignore[arg-type]
        return len(list(cache.iterdir()))

    assert entries(side=5) == 1
    assert entries(side=5, flip=True, group="parent") == 1
    assert entries(side=6) == 2
    assert entries(side=5, channels=1) == 3
    os.utime(root / "1.png", ns=(1, 1))
    assert entries(side=5) == 4
    (root / "1.png").rename(root / "one.png")
    assert entries(side=5) == 5


def test_folders_that_differ_in_pixels_alone_do_not_share_an_entry(tmp_path: Path) -> None:
    for i, name in enumerate(("one", "other")):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", np.full((5, 7), i, np.uint8))
        os.utime(tmp_path / name / "a.npy", (9, 9))
    stores = [Folder(root=str(tmp_path / name), side=5).load() for name in ("one", "other")]
    assert [int(store.pixels.max()) for store in stores] == [0, 1]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("pixels.bin", b"short"),
        ("pixels.bin", b"long" * 10000),
        ("meta.json", b"{}"),
        ("meta.json", b"\x80garbage"),
        ("sizes.npy", b""),
        ("digests.npy", pickle.dumps("code")),
    ],
)
def test_damaged_entry_is_rebuilt(
    file: str, content: bytes, numbered: Callable[..., Path], cache_home: Path
) -> None:
    root = numbered(4)
    before = Folder(root=str(root)).load()
    in_memory = Folder(root=str(root), cache=None).load()
    (only_entry(cache_home) / file).write_bytes(content)
    after = Folder(root=str(root)).load()
    assert same(after, in_memory)
    assert after.cache == before.cache == only_entry(cache_home)


def test_entry_of_other_images_is_not_trusted(
    numbered: Callable[..., Path], tmp_path: Path
) -> None:
    root, cache = numbered(4), tmp_path / "cache"
    mine = Folder(root=str(root), cache=str(cache), side=5).load()
    other = Folder(root=str(root), cache=str(cache), side=6).load()
    assert mine.cache is not None
    assert other.cache is not None
    shutil.rmtree(mine.cache)
    shutil.copytree(other.cache, mine.cache)
    assert same(Folder(root=str(root), cache=str(cache), side=5).load(), mine)


def test_a_slower_writer_leaves_the_entry_of_the_faster_one(
    numbered: Callable[..., Path], cache_home: Path
) -> None:
    root = numbered(3)
    Folder(root=str(root)).load()
    before = only_entry(cache_home).stat()
    entry = Cache(only_entry(cache_home))
    slower = store_of_arrays([np.zeros((32, 32, 3), np.uint8)], ["0.png"], 32)

    def produce(file: BinaryIO) -> ImageStore:
        file.write(slower.pixels.tobytes())
        return slower

    assert len(entry.write(0, produce)) == 3
    assert only_entry(cache_home).stat().st_ino == before.st_ino


def test_concurrent_writers_agree(numbered: Callable[..., Path], cache_home: Path) -> None:
    root = numbered(9)
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(lambda _: Folder(root=str(root)).load(), range(3)))
    assert all(same(stores[0], store) for store in stores)
    assert only_entry(cache_home)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write further, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_one_line_and_leaves_nothing(
    numbered: Callable[..., Path], cache_home: Path
) -> None:
    root = numbered(5, height=64, width=64)
    with largest_file(20000), pytest.raises(OSError, match=r"data\.cache: cannot write") as raised:
        Folder(root=str(root)).load()
    assert "\n" not in str(raised.value)
    assert "data.cache=null" in str(raised.value)
    assert not list((cache_home / "mae_nas").iterdir())


def test_cache_below_a_file_is_one_line(numbered: Callable[..., Path]) -> None:
    root = numbered(2)
    with pytest.raises(OSError, match=r"data\.cache: cannot write .*Not a directory"):
        Folder(root=str(root), cache=str(root / "0.png" / "cache")).load()


def test_leftovers_of_killed_writers_are_swept(
    numbered: Callable[..., Path], cache_home: Path
) -> None:
    old, young = (cache_home / "mae_nas" / f".partial-{name}" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
    os.utime(old, (1, 1))
    Folder(root=str(numbered(2))).load()
    assert not old.exists()
    assert young.exists()


def test_mapped_store_pickles_by_name(numbered: Callable[..., Path]) -> None:
    store = Folder(root=str(numbered(8, height=60, width=70))).load()
    content = pickle.dumps(store)
    assert len(content) < store.pixels.nbytes // 10
    assert same(pickle.loads(content), store)
