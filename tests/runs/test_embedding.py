import csv
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mae_nas.batch import Batch
from mae_nas.data import Synthetic
from mae_nas.network.encoder import Encoder
from mae_nas.runs.embedding import PartialTable, features_of, identity_of

ROWS, COLUMNS, BATCH = 103, 7, 3
FEATURES = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
FILES = [f"ordner/bild {i}, ä.png" for i in range(ROWS)]


def blocks(first: int, stop: int = ROWS) -> Iterator[NDArray[np.float32]]:
    """Batches from `first` on; killed before the one that begins at `stop`."""
    for start in range(first, ROWS, BATCH):
        if start >= stop:
            raise KeyboardInterrupt
        yield FEATURES[start : start + BATCH]


def table(output: Path, identity: str = "one") -> PartialTable:
    return PartialTable(output, ROWS, COLUMNS, identity)


def quiet(_done: int, _total: int) -> None:
    pass


@pytest.mark.parametrize("name", ["f.npz", "f.csv"])
def test_a_table_that_is_gone_on_with_is_the_same_bytes(tmp_path: Path, name: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    made = table(whole / name)
    made.fill(*made.open(), blocks(0), quiet)
    made.finish(made.open()[0], FILES)
    for stop in (60, 99):
        made = table(parts / name)
        rows, done = made.open()
        with pytest.raises(KeyboardInterrupt):
            made.fill(rows, done, blocks(done, stop), quiet)
        assert not (parts / name).exists()
    made = table(parts / name)
    rows, done = made.open()
    assert done == 96  # two times sixteen batches of three
    made.fill(rows, done, blocks(done), quiet)
    made.finish(rows, FILES)
    assert sorted(path.name for path in parts.iterdir()) == [name]
    if name.endswith("npz"):
        found = [np.load(folder / name) for folder in (whole, parts)]
        assert set(found[0].files) == {"features", "files"}
        assert found[0]["features"].dtype == np.float32
        for each in found:
            assert np.array_equal(each["features"], FEATURES)
            assert each["files"].tolist() == FILES
    else:
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
        with (parts / name).open(newline="", encoding="utf-8") as file:
            head, *lines = csv.reader(file)
        assert head == ["file", *(f"feature_{i}" for i in range(COLUMNS))]
        assert [line[0] for line in lines] == FILES
        values = np.array([line[1:] for line in lines]).astype(np.float32)
        assert np.array_equal(values, FEATURES)  # all digits


@pytest.mark.parametrize("harm", ["identity", "state", "table", "shape"])
def test_what_is_not_of_this_table_is_begun_anew(tmp_path: Path, harm: str) -> None:
    output = tmp_path / "f.npz"
    made = table(output)
    with pytest.raises(KeyboardInterrupt):
        made.fill(*made.open(), blocks(0, 60), quiet)
    assert table(output).open()[1] == 48
    if harm == "state":
        (made.folder / "state.json").write_text('{"identity": "one", "done"')
    elif harm == "table":
        (made.folder / "features.npy").write_bytes(b"no")
    elif harm == "shape":
        made = PartialTable(output, ROWS, COLUMNS + 1, "one")
    else:
        made = table(output, "other")
    rows, done = made.open()
    assert (done, rows.shape[0]) == (0, ROWS)


def test_an_identity_is_of_the_images_and_of_all_other_parts() -> None:
    store, other = (Synthetic(images=n, side=8).load() for n in (5, 6))
    renamed = replace(store, files=["a", *store.files[1:]])
    keys = [identity_of(store, "a", n) for n in range(5)]
    keys += [identity_of(each, "a", 0) for each in (other, renamed)]
    assert len(set(keys)) == 7
    assert identity_of(store, "a", 0) == keys[0]


class Spoilt(nn.Module):
    """Features that are not numbers from the fifth image on."""

    def features(self, image: Tensor) -> Tensor:
        return image.flatten(1) / (image.flatten(1)[:, :1] < 5)


def test_features_that_are_not_finite_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    values = torch.arange(9.0).reshape(9, 1, 1, 1).expand(9, 1, 1, COLUMNS)
    batches = (Batch(values[i : i + 3], torch.arange(i, i + 3), 0) for i in range(0, 9, 3))
    made = table(tmp_path / "f.npz")
    features = features_of(cast(Encoder, Spoilt()), batches)
    with pytest.raises(ValueError, match="features of images 4 to 6 are not finite"):
        made.fill(*made.open(), features, quiet)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    (tmp_path / "f.npz").write_text("another's")
    with pytest.raises(ValueError, match="is there already"):
        table(tmp_path / "f.npz").open()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["another's"]


@pytest.mark.slow
def test_another_process_that_makes_the_same_file_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "f.npz").open()
    words = (
        "from pathlib import Path; from mae_nas.runs.embedding import PartialTable; "
        f"PartialTable(Path({str(tmp_path / 'f.npz')!r}), 3, 2, 'x').open()"
    )
    done = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("f.npz is being made by another process")


def test_names_that_are_no_text_keep_their_bytes(tmp_path: Path) -> None:
    output = tmp_path / "f.csv"
    made = PartialTable(output, 1, 2, "x")
    rows, done = made.open()
    made.fill(rows, done, [np.ones((1, 2), np.float32)], quiet)
    made.finish(rows, [b"\xff\xe9.png".decode(errors="surrogateescape")])
    assert b"\n\xff\xe9.png,1.0,1.0\n" in output.read_bytes()
