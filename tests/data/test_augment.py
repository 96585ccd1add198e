import random

import numpy as np
import pytest
import torch

from mae_nas.data.augment import Augmentation, _transforms
from mae_nas.data.gather import Cutter
from mae_nas.data.loading import store_of_arrays

EACH = [Augmentation("original"), Augmentation("rand-m9-mstd0.5"), Augmentation(colour_jitter=0.4)]
EACH += [Augmentation(smallest_crop=0.08), Augmentation("rand-m5", 0.4, 0.2)]
INDEX = torch.tensor([3, 0, 2, 1])


def cutter(augmentation: Augmentation, device: torch.device | None, channels: int = 3) -> Cutter:
    images = [np.random.default_rng(i).integers(256, size=(12, 12 + i, channels)) for i in range(4)]
    store = store_of_arrays([i.astype(np.uint8) for i in images], list("0123"), 12)
    return Cutter(store, 2, device, augmentation)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augmentation", EACH)
def test_an_image_is_a_function_of_the_key_and_its_place(
    augmentation: Augmentation, channels: int
) -> None:
    host = cutter(augmentation, None, channels)
    one = host.cut(INDEX, 5)
    assert one.shape == (4, 12, 12, channels)
    assert one.dtype == torch.uint8
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002 - what others draw
    apart = [host.cut(INDEX[half], 5) for half in (slice(2), slice(2, 4))]  # as two ranks
    assert torch.equal(one, torch.cat(apart))
    resident = cutter(augmentation, torch.device("cpu"), channels)
    assert torch.equal(one, resident.cut(INDEX, 5))
    assert not torch.equal(one, host.cut(INDEX, 6))
    plain = cutter(Augmentation(), None, channels)
    assert torch.equal(host.cut(INDEX, None), plain.cut(INDEX, None))  # as images are judged
    assert not torch.equal(one, plain.cut(INDEX, 5))


@pytest.mark.parametrize("augmentation", EACH)
def test_other_generators_stay_where_they_are(augmentation: Augmentation) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    cutter(augmentation, None).cut(INDEX, 5)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_resized_crops_are_of_the_whole_image_in_their_shares_and_ratios() -> None:
    rows, columns = np.mgrid[:80, :100]
    place = np.stack([rows, columns, 0 * rows], 2).astype(np.uint8)
    store = store_of_arrays([place], ["a"], 12)  # windows of it are 12 × 12
    crops = Cutter(store, 2, None, Augmentation(smallest_crop=0.25))
    found = []
    for key in range(300):
        crop = crops.cut(torch.tensor([0]), key)[0].numpy().astype(float)
        found.append([np.ptp(crop[..., 0]) + 7, np.ptp(crop[..., 1]) + 8])  # of pixels' middles
    heights, widths = np.array(found).T
    shares, ratios = heights * widths / 8000, widths / heights
    assert 0.2 < shares.min() < 0.35
    assert 0.8 < shares.max() < 1.1
    assert 0.65 < ratios.min() < 0.85
    assert 1.2 < ratios.max() < 1.45


def test_transforms_are_of_the_ranges_that_papers_name() -> None:
    crop, jitter, policy = _transforms(Augmentation("rand-m9-n3", 0.4, 0.08), 40, 3)
    assert (crop.scale, crop.ratio, crop.size) == ((0.08, 1.0), (3 / 4, 4 / 3), (40, 40))
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.6, 1.4)
    assert jitter.hue == (-0.2, 0.2)
    assert (policy.num_layers, len(policy.ops)) == (3, 15)
    given = policy.ops[0].hparams
    assert (given["translate_const"], given["img_mean"]) == (18, (128, 128, 128))
    assert {operation.magnitude for operation in policy.ops} == {9}


@pytest.mark.parametrize(
    "policy",
    [
        *("rand-mstd1-tweights", "rand-m9-mstd0.5-inc1", "rand-m15-n2-mmax20", "rand-m9-n3-p0.5"),
        *("rand-m9-t3a", "rand", "original-mstd0.5", "originalr", "v0", "v0r-mstd0.5", "3a"),
    ],
)
def test_the_policies_of_timm_are_taken(policy: str) -> None:
    assert Augmentation(policy)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"policy": "rnad-m9"}, "policy 'rnad-m9': is none of timm's; e.g. original"),
        ({"policy": "rand-q9"}, "policy 'rand-q9': is none of timm's; e.g. original"),
        ({"policy": "rand-n0"}, "policy 'rand-n0': is none of timm's; e.g. original"),
        ({"policy": "rand-n99999999"}, "policy 'rand-n99999999': is none of timm's; e.g. original"),
        ({"policy": "rand-m9-t1"}, "policy 'rand-m9-t1': is none of timm's; e.g. original"),
        ({"policy": "original-mstd"}, "policy 'original-mstd': is none of timm's; e.g. original"),
        ({"policy": "rand-mx"}, "policy 'rand-mx': is none of timm's; e.g. original"),
        ({"policy": "rand-m99"}, "policy 'rand-m99': is none of timm's; e.g. original"),
        ({"policy": "rand-m9-p2"}, "policy 'rand-m9-p2': is none of timm's; e.g. original"),
        ({"policy": "rand-m9-mstd1.x"}, "policy 'rand-m9-mstd1.x': is none of timm's"),
        ({"colour_jitter": 2.0}, "colour_jitter 2.0: must lie in [0, 1], e.g. 0.4"),
        ({"smallest_crop": float("nan")}, "smallest_crop nan: must lie in [0, 1], e.g. 0.08"),
    ],
)
def test_what_cannot_be_is_told(given: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        Augmentation(**given)  # type: ignore[arg-type]
    assert str(refused.value).startswith(told)
