import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_image
from torchvision import datasets

from mae_nas.data import Cifar10, Cifar100, Digits, ImageNet, Photos, Synthetic

Save = Callable[..., Path]


def test_digits_are_resized_scans_of_one_channel() -> None:
    store = Digits().load()
    assert (len(store), store.side, store.channels) == (1797, 32, 1)
    assert store.labels is not None
    scans, labels = load_digits(return_X_y=True)
    np.testing.assert_array_equal(store.labels, labels)
    images = store.pixels.reshape(-1, 4, 8, 4, 8)  # means of 4×4 blocks are near the scan
    raw = store.pixels.reshape(1797, 8, 4, 8, 4).mean(axis=(2, 4))
    assert np.corrcoef(raw.flatten(), scans.flatten())[0, 1] > 0.97
    assert images.max() > 240


def test_photo_bands_share_no_pixel_and_tiles_are_cut_where_they_say() -> None:
    store = Photos().load()
    assert (len(store), store.side, store.channels) == (3080, 32, 3)
    tiles = store.pixels.reshape(-1, 32, 32, 3)
    names = list(store.files)
    china = load_sample_image("china.jpg")
    # A tile per row is 77: the 80th tile of band 3 is a step (8) down and two steps to the right.
    tile = tiles[names.index("china/03/079")]
    np.testing.assert_array_equal(tile, china[3 * 40 + 8 : 3 * 40 + 40, 16:48])
    assert len({name.rpartition("/")[0] for name in names}) == 20
    assert Photos().group == "parent"


def test_photos_refuse_a_side_without_tiles() -> None:
    with pytest.raises(ValueError, match="no tile of 500 pixels"):
        Photos(side=500).load()


def test_synthetic_images_are_all_different_and_reproducible() -> None:
    one, other = (Synthetic(images=50, side=9, channels=2).load() for _ in range(2))
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert len(np.unique(one.pixels.reshape(50, -1), axis=0)) == 50
    assert one.channels == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"side": 0}, r"data\.side: 0"),
        ({"crop_padding": -1}, r"data\.crop_padding: -1"),
        ({"held_out": 0}, r"data\.held_out: 0"),
        ({"split": "sorted"}, r"data\.split: 'sorted' is not one of random, ordered"),
        ({"group": "("}, r"data\.group: '\(' is not none, parent or a regular expression"),
        ({"images": 0}, r"data\.images"),
    ],
)
def test_wrong_settings_are_one_line_before_any_data_is_read(
    options: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        Synthetic(**options)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_known_facts_need_no_data() -> None:
    assert (Digits().known_side(), Digits().known_channels()) == (32, 1)
    assert Cifar10(root="nowhere", side=40).known_side() == 40
    assert ImageNet(root="nowhere").known_side() == 224
    assert Synthetic(channels=5).known_channels() == 5


def class_folders(save: Save, below: str, classes: int, each: int = 3, side: int = 32) -> None:
    generator = np.random.default_rng(8)
    for label in range(classes):
        for i in range(each):
            pixels = generator.integers(0, 256, (side, side, 3), np.uint8)
            save(f"{below}/class{label:02d}/{i}.png", pixels)


@pytest.mark.parametrize("below", ["train", "cifar10/train", "cifar10", "."])
def test_cifar_is_found_in_class_folders_and_test_images_are_not(
    below: str, save: Save, tmp_path: Path
) -> None:
    class_folders(save, below, classes=10)
    if below.endswith("train"):
        class_folders(save, below.replace("train", "test"), classes=10, each=1)
    store = Cifar10(root=str(tmp_path / "images")).load()
    assert len(store) == 30
    assert store.labels is not None
    np.testing.assert_array_equal(store.labels, np.repeat(np.arange(10), 3))
    assert store.files[4] == "class01/1.png"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A tiny CIFAR-10 in the published format, whose checksums torchvision is told."""
    data = np.random.default_rng(9).integers(0, 256, (12, 3072), np.uint8)
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    files = {
        "data_batch_1": {"data": data, "labels": list(range(12))},
        "test_batch": {"data": data[:1] * 0, "labels": [0]},
        "batches.meta": {"label_names": [str(i) for i in range(12)]},
    }
    sums: dict[str, str] = {}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {**datasets.CIFAR10.meta, "md5": sums["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return data


def test_cifar_is_read_in_the_published_format(published: np.ndarray, tmp_path: Path) -> None:
    store = Cifar10(root=str(tmp_path)).load()
    planes = published.reshape(12, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(store.pixels.reshape(12, 32, 32, 3), planes)
    assert store.labels is not None
    assert store.labels.tolist() == list(range(12))


@pytest.mark.usefixtures("published")
def test_cifar_with_a_wrong_checksum_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "cifar10" / "cifar-10-batches-py" / "data_batch_1"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(OSError, match=r"cifar10 in .* is damaged") as raised:
        Cifar10(root=str(tmp_path)).load()
    assert "\n" not in str(raised.value)


def test_missing_cifar_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cifar-100-python/ .*100 class .*data\.download=true"):
        Cifar100(root=str(tmp_path)).load()
    with pytest.raises(OSError, match="does not exist"):
        Cifar100(root=str(tmp_path / "nowhere")).load()


@pytest.mark.parametrize("below", ["train", "imagenet-sample/train", "."])
def test_imagenet_is_found_and_labelled(below: str, save: Save, tmp_path: Path) -> None:
    class_folders(save, below, classes=3, each=2, side=11)
    store = ImageNet(root=str(tmp_path / "images"), side=8).load()
    assert (len(store), store.side, store.channels) == (6, 8, 3)
    assert store.labels is not None
    assert store.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_imagenet_fraction_is_per_class_nested_and_deterministic(
    save: Save, tmp_path: Path
) -> None:
    class_folders(save, "train", classes=2, each=8, side=9)
    class_folders(save, "train/../extra", classes=1, each=1, side=9)

    def files(fraction: float) -> list[str]:
        return list(ImageNet(root=str(tmp_path / "images"), side=9, fraction=fraction).load().files)

    half, quarter = files(0.5), files(0.25)
    assert [name[:7] for name in half] == ["class00"] * 4 + ["class01"] * 4
    assert len(quarter) == 4
    assert set(quarter) < set(half)
    assert files(0.5) == half
    assert half[:4] != [f"class00/{i}.png" for i in range(4)]  # not the first ones
    assert len(files(0.001)) == 2  # never an empty class
    with pytest.raises(ValueError, match=r"data\.fraction: 0 is not in"):
        ImageNet(root="x", fraction=0)


def test_imagenet_without_class_folders_says_where_it_looked(save: Save, tmp_path: Path) -> None:
    save("a.png", np.zeros((4, 5), np.uint8))
    with pytest.raises(OSError, match=r"looked in imagenet/train, .*, train"):
        ImageNet(root=str(tmp_path / "images")).load()
