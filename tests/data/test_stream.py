import numpy as np
import pytest
import torch

from mae_nas.data import ImageStore, Synthetic
from mae_nas.data.stream import Preprocessing, stream

CPU = torch.device("cpu")


@pytest.fixture
def store() -> ImageStore:
    return Synthetic(images=11, side=8).load()


def test_images_come_in_order_and_batches_as_cut(store: ImageStore) -> None:
    positions = np.array([7, 2, 9, 0, 4])
    batches = list(stream(store, positions, 2, CPU))
    assert [batch.index.tolist() for batch in batches] == [[7, 2], [9, 0], [4]]
    rest = list(stream(store, positions, 2, CPU, first=1))
    assert [torch.equal(a.image, b.image) for a, b in zip(rest, batches[1:], strict=True)] == [
        True,
        True,
    ]


def test_images_are_normalised_as_in_training(store: ImageStore) -> None:
    channels = store.channels
    mean, std = tuple(range(50, 50 + channels)), tuple(range(2, 2 + channels))
    seen = Preprocessing(8, channels, "uint8", mean, std).apply(store)
    (batch,) = stream(seen, np.array([3]), 1, CPU)
    for c in range(channels):
        wanted = (store[3][..., c].astype(float) - mean[c]) / std[c]
        np.testing.assert_allclose(batch.image[0, c].numpy(), wanted, rtol=1e-5)


def test_preprocessing_survives_its_text(store: ImageStore) -> None:
    seen = Preprocessing.of(store)
    assert Preprocessing.from_json(seen.to_json()) == seen


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"side": 8, "channels": 3, "mean": [1], "std": [1], "dtype": "x"}'),
        *(
            f'{{"side": {side}, "channels": 1, "mean": [{mean}], "std": [{std}], "dtype": "uint8"}}'
            for side, mean, std in ((8, "NaN", 1), (8, 1, 0), (8, 1, "Infinity"), (99999, 1, 1))
        ),
    ],
)
def test_other_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="not how images were prepared") as error:
        Preprocessing.from_json(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("side", 16, "data: its images have side 8, the network's 16"),
        ("channels", 5, "data: its images have channels 3, the network's 5"),
        ("dtype", "float32", "data: its images have dtype uint8, the network's float32"),
    ],
)
def test_images_of_another_kind_are_refused(
    store: ImageStore, name: str, value: object, said: str
) -> None:
    facts = {"side": 8, "channels": 3, "dtype": "uint8", name: value}
    with pytest.raises(ValueError, match=said):
        Preprocessing(**facts, mean=(0.0,), std=(1.0,)).apply(store)  # type: ignore[arg-type]
