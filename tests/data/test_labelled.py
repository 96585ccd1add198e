from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_nas.data import Cifar10, Digits, Folder, ImageSource, Synthetic
from mae_nas.data.labelled import LabelledData


def loaded(source: ImageSource, seed: int = 0, *, validates: bool = False) -> LabelledData:
    data = LabelledData(source, seed, source.batch_size, validates=validates)
    data.load()
    return data


@pytest.fixture
def class_folders(tmp_path: Path) -> Callable[..., Path]:
    """Grey images of 8 × 8 pixels, whose values tell class and number, in class folders."""

    def make(name: str, classes: dict[str, int], offset: int = 0) -> Path:
        root = tmp_path / name
        for place, (label, images) in enumerate(classes.items()):
            (root / label).mkdir(parents=True)
            for i in range(images):
                pixels = np.full((8, 8), (50 * place + i + offset) % 256, np.uint8)
                Image.fromarray(pixels).save(root / label / f"{i}.png")
        return root

    return make


def folder(root: Path, **options: object) -> Folder:
    given = {"side": 8, "channels": 1, "cache": None, "batch_size": 4} | options
    return Folder(root=str(root), **given)  # type: ignore[arg-type]


def test_every_image_trains_or_tests_and_labels_are_those_of_the_set() -> None:
    from sklearn.datasets import load_digits

    data = loaded(Digits(batch_size=50))
    assert data.classes == tuple("0123456789")
    batches = list(data.test_batches())
    tested = torch.cat([batch.index for batch in batches]).tolist()
    trained = data.split.weights.tolist()
    assert sorted([*tested, *trained]) == list(range(1797))
    assert len(tested) == 359
    labels = torch.cat([b.label for b in batches if b.label is not None])
    assert labels.tolist() == load_digits().target[tested].tolist()
    (step,) = data.step_batches(3).values()
    assert step[0].label is not None
    assert step[0].label.tolist() == load_digits().target[step[0].index].tolist()
    assert set(step[0].index.tolist()) <= set(trained)


def test_test_images_are_the_same_whatever_the_seed_and_validation_is_not() -> None:
    one, other = (loaded(Digits(held_out=90), seed, validates=True) for seed in (0, 1))
    places = [[b.index.tolist() for b in data.test_batches()] for data in (one, other)]
    assert places[0] == places[1]
    held_out = [set(data.split.held_out.tolist()) for data in (one, other)]
    assert held_out[0] != held_out[1]
    assert len(held_out[0]) == 90
    tested = {i for part in places[0] for i in part}
    parts = [held_out[0], set(one.split.weights.tolist()), tested]
    assert sum(map(len, parts)) == 1797 == len(set.union(*parts))
    judged = [i for batch in one.judged_batches() for i in batch.index.tolist()]
    assert set(judged) == held_out[0]


def test_a_folder_of_test_images_is_normalised_and_numbered_as_the_training_images(
    class_folders: Callable[..., Path],
) -> None:
    train = class_folders("train", {"ant": 6, "bee": 6, "cat": 6})
    test = class_folders("test", {"cat": 2, "ant": 3}, offset=7)
    data = loaded(folder(train, test=str(test)))
    assert data.classes == ("ant", "bee", "cat")
    assert len(data.split.weights) == 18
    values, labels = {}, []
    for batch in data.test_batches():
        assert batch.label is not None
        labels += batch.label.tolist()
        for image, label in zip(batch.image, batch.label.tolist(), strict=True):
            values.setdefault(label, []).append(round(float(image[0, 0, 0]), 4))
    assert sorted(labels) == [0, 0, 0, 2, 2]
    mean, std = data.store.moments.mean[0], data.store.moments.std[0]
    trained = np.concatenate([np.arange(start, start + 6) for start in (0, 50, 100)])
    assert (mean, std) == (pytest.approx(trained.mean()), pytest.approx(trained.std()))
    # In `test`, cat is the first folder made: 7 and 8; ant the second: 57 to 59.
    assert values[2] == [round((v - mean) / std, 4) for v in (7, 8)]
    assert values[0] == [round((v - mean) / std, 4) for v in (57, 58, 59)]


def test_groups_are_not_divided_between_training_and_test(
    class_folders: Callable[..., Path],
) -> None:
    root = class_folders("all", {"a": 10, "b": 10})
    for i in range(10):  # copies of the first class's images: exact duplicates
        content = (root / "a" / f"{i}.png").read_bytes()
        (root / "a" / f"copy{i}.png").write_bytes(content)
    data = loaded(folder(root))
    files = data.store.files
    tested = {files[i] for batch in data.test_batches() for i in batch.index.tolist()}
    for i in range(10):
        assert (f"a/{i}.png" in tested) == (f"a/copy{i}.png" in tested)
    assert 0 < len(tested) <= 6


def test_images_are_normalised_by_the_training_images_alone(
    class_folders: Callable[..., Path],
) -> None:
    data = loaded(folder(class_folders("all", {"a": 12, "b": 9})))
    values = [int(data.store[i][0, 0, 0]) for i in data.split.weights]
    assert len(values) == 17
    assert data.store.moments.mean[0] == pytest.approx(np.mean(values))
    assert data.store.moments.std[0] == pytest.approx(np.std(values))


def test_groups_that_are_too_large_for_a_fifth_still_leave_a_test(
    class_folders: Callable[..., Path],
) -> None:
    data = loaded(folder(class_folders("all", {"a": 10, "b": 12, "c": 14}), group="parent"))
    assert sum(len(b.index) for b in data.test_batches()) == 10
    assert len(data.split.weights) == 26


def test_test_images_that_are_training_images_are_counted(
    class_folders: Callable[..., Path],
) -> None:
    root = class_folders("all", {"a": 6, "b": 7})
    assert loaded(folder(root, test=str(root))).shared == 13
    other = class_folders("other", {"a": 3, "b": 2}, offset=5)  # 5, 55 and 56 are in both
    assert loaded(folder(root, test=str(other))).shared == 3


def test_a_set_with_test_images_of_its_own_is_not_judged_without(
    class_folders: Callable[..., Path],
) -> None:
    root = class_folders("train", {str(i): 5 for i in range(10)}).parent
    source = Cifar10(root=str(root), cache=None, batch_size=4)
    with pytest.raises(FileNotFoundError, match="the test images are not"):
        loaded(source)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (lambda _: Synthetic(images=40), "data: its images have no labels; a network is trained"),
        (lambda f: folder(f("x", {"train": 9, "test": 5})), "data.root: its folders are test, tr"),
        (lambda f: folder(f("x", {"a": 9})), "data: all images are of one class, a; two or more"),
        (lambda f: folder(f("x", {"a": 9, "b": 2}), batch_size=50), "data.batch_size: 50 does not"),
        (
            lambda f: folder(f("x", {"a": 9, "b": 9}), test=str(f("y", {"c": 2, "a": 1}))),
            "data: the test images have class c, unlike",
        ),
        (
            lambda f: folder(f("x", {"a": 9, "b": 9}), side="auto", test=str(f("y", {"a": 1}))),
            "data.test: needs data.side and data.channels",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    class_folders: Callable[..., Path], source: Callable[..., ImageSource], line: str
) -> None:
    with pytest.raises(ValueError, match=line):
        loaded(source(class_folders))


@pytest.mark.slow
def test_cifar_has_its_own_test_images(data_root: Path, tmp_path: Path) -> None:
    data = loaded(Cifar10(root=str(data_root), cache=str(tmp_path)))
    assert len(data.split.weights) == 50000
    assert data.describe()["test"] == 10000
    assert data.classes[:3] == ("airplane", "automobile", "bird")
