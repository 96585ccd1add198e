import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mae_nas.data import Folder, ImageStore
from mae_nas.data.files import find_images


def image_of(store: ImageStore, name: str) -> NDArray[np.generic]:
    return store[list(store.files).index(name)]


def test_files_are_found_in_natural_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b10.png", "b9.JPG", "a/x.tif", ".hidden.png", ".git/y.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    assert found.images == ["a/x.tif", "b9.JPG", "b10.png"]
    assert (found.unlisted, found.others, found.links) == ([], {".txt": 1}, 0)


def test_links_are_followed_without_looping(tmp_path: Path) -> None:
    (tmp_path / "root" / "z").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.png").touch()
    (tmp_path / "root" / "z" / "near.png").touch()
    (tmp_path / "root" / "z" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "alias").symlink_to(tmp_path / "root" / "z")
    (tmp_path / "root" / "out").symlink_to(tmp_path / "elsewhere")
    found = find_images(tmp_path / "root")
    assert (found.images, found.links) == (["out/far.png", "z/near.png"], 3)


def test_a_link_to_itself_is_named_and_the_rest_is_read(numbered: Callable[..., Path]) -> None:
    root = numbered(3)
    (root / "self").symlink_to(root / "self")
    store = Folder(root=str(root)).load()
    assert list(store.files) == ["0.png", "1.png", "2.png"]
    assert store.skipped == [("self", "cannot be read: Too many levels of symbolic links")]


def test_missing_file_and_empty_roots_are_one_line_each(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt", "c.csv"):
        (tmp_path / "texts" / name).touch()
    (tmp_path / "empty").mkdir()
    cases = {
        "missing": "does not exist",
        "file": "is a file",
        "texts": r"no image in .*looked for .*\.png.*found 2 × \.txt, 1 × \.csv",
        "empty": "found no file at all",
    }
    for name, words in cases.items():
        with pytest.raises((ValueError, OSError), match=words) as raised:
            Folder(root=str(tmp_path / name)).load()
        assert str(tmp_path / name) in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may list every folder")
def test_unreadable_folders_are_named(numbered: Callable[..., Path]) -> None:
    root = numbered(3)
    (root / "locked").mkdir(mode=0)
    assert Folder(root=str(root)).load().skipped == [
        ("locked", "cannot be listed: Permission denied")
    ]
    with pytest.raises(OSError, match="cannot be listed: Permission denied"):
        Folder(root=str(root / "locked")).load()


def test_folder_without_a_readable_image_names_the_first_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").write_text("text")
    with pytest.raises(ValueError, match=r"no readable image .* all 2 .* a\.png: empty file"):
        Folder(root=str(tmp_path)).load()


def nasty_folder(root: Path) -> None:
    generator = np.random.default_rng(4)
    photo = Image.fromarray(generator.integers(0, 256, (40, 33, 3), np.uint8))
    (root / "sub folder").mkdir(parents=True)
    (root / "empty.png").touch()
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG")
    (root / "half.jpg").write_bytes(buffer.getvalue()[:700])
    (root / "text.png").write_text("hello")
    Image.new("RGB", (1, 1), "red").save(root / "dot.png")
    photo.convert("CMYK").save(root / "print.jpg")
    levels = np.arange(4096, dtype=np.uint16).reshape(32, 128)
    Image.fromarray(levels).save(root / "scan.png")
    photo.save(root / "moving.gif", save_all=True, append_images=[photo.rotate(90)] * 2)
    photo.save(root / "sub folder" / "größe 図 1.png")
    (root / "loop").symlink_to(root)
    (root / "gone.png").symlink_to(root / "nothing")
    os.mkfifo(root / "pipe.png")
    header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + struct.pack(">I", zlib.crc32(header))
    (root / "bomb.png").write_bytes(bomb + struct.pack(">I4s", 0, b"IDAT"))
    np.save(root / "stack.npy", np.zeros((32, 32, 7), np.uint16))
    Image.new("L", (1, 100_000)).save(root / "thread.png")  # 32 pixels wide it would be a bomb


def test_nasty_folder_keeps_what_is_readable_and_names_the_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nasty_folder(tmp_path)
    store = Folder(root=str(tmp_path), side="auto").load()
    readable = ["dot.png", "moving.gif", "print.jpg", "scan.png", "sub folder/größe 図 1.png"]
    assert list(store.files) == readable
    assert {name for name, _ in store.skipped} == {
        *("bomb.png", "empty.png", "gone.png", "half.jpg", "pipe.png", "stack.npy", "text.png"),
        "thread.png",
    }
    reasons = dict(store.skipped)
    assert "truncated" in reasons["half.jpg"]
    assert reasons["empty.png"] == "empty file"
    assert "pixels" in reasons["bomb.png"]
    assert reasons["stack.npy"] == "has 7 channels where 3 are wanted"
    assert (store.side, store.channels, store.pixels.dtype) == (32, 3, np.int16)
    scan = image_of(store, "scan.png").astype(int) + 32768
    np.testing.assert_array_equal(scan[..., 1], np.arange(4096).reshape(32, 128))
    assert (image_of(store, "dot.png")[0, 0].astype(int) + 32768).tolist() == [65535, 0, 0]
    assert image_of(store, "moving.gif").shape == (39, 32, 3)
    assert capfd.readouterr() == ("", "")


def test_grey_folder_has_one_channel_and_its_own_statistics(save: Callable[..., Path]) -> None:
    arrays = [np.full((5, 9), 10, np.uint8), np.full((6, 5), 40, np.uint8)]
    roots = [save(f"{i}.png", array).parent for i, array in enumerate(arrays)]
    store = Folder(root=str(roots[0]), side=5).load()
    everything = np.concatenate([array.flatten() for array in (arrays[0], arrays[1])]).astype(float)
    assert store.channels == 1
    assert store.sizes.tolist() == [[5, 9], [6, 5]]
    np.testing.assert_allclose(store.moments.mean, [everything.mean()])
    np.testing.assert_allclose(store.moments.std, [everything.std()])
    assert (store.moments.low, store.moments.high) == (10, 40)


@pytest.mark.parametrize("cache", [None, "auto"])
def test_a_file_that_is_skipped_does_not_decide_the_depth(
    numbered: Callable[..., Path], cache: str | None
) -> None:
    root = numbered(6)
    alone = Folder(root=str(root), cache=None).load()
    np.save(root / "5b.npy", np.full((5, 7, 3), np.nan, np.float32))
    np.save(root / "stack.npy", np.zeros((32, 32, 7), np.float32))
    seen: list[int] = []
    store = Folder(root=str(root), cache=cache).load(lambda done, _total: seen.append(done))
    assert [name for name, _ in store.skipped] == ["5b.npy", "stack.npy"]
    assert store.pixels.dtype == np.uint8
    np.testing.assert_array_equal(store.pixels, alone.pixels)
    assert (list(store.files), store.moments.high) == (list(alone.files), alone.moments.high)
    assert seen[-1] == 16  # of two passes over eight


def test_progress_reaches_its_total(numbered: Callable[..., Path]) -> None:
    root = numbered(6)
    (root / "broken.png").touch()
    seen: list[tuple[int, int]] = []
    Folder(root=str(root), cache=None).load(lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, 15))
    assert {total for _, total in seen} == {14}
