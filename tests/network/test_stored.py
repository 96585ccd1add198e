"""Networks made again from what their checkpoints say, and nothing made from what they may not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_nas.batch import Batch
from mae_nas.data.stream import Preprocessing
from mae_nas.genotype import PUBLISHED
from mae_nas.network import DerivedNetwork, NetworkSize
from mae_nas.network.encoder import Encoder
from mae_nas.network.peers import TimmEncoder
from mae_nas.network.stored import identity, restore, start_from, untrained

SEEN = Preprocessing(16, 2, "uint8", (10.0, 20.5), (3.0, 4.0))
SIZE = NetworkSize(4, 3, "cifar", auxiliary=True)
FILE = Path("run.ckpt")


def ours(classes: int = 5, name: str = "DARTS_V2", size: NetworkSize = SIZE) -> DerivedNetwork:
    return DerivedNetwork(PUBLISHED[name], size, 2, 16, classes)


def used(network: Encoder, prefix: str = "network.") -> dict[str, Any]:
    """A checkpoint of the network, its statistics none of a new one's."""
    side = 32 if isinstance(network, TimmEncoder) else 16
    network.train()
    for _ in range(2):
        network(torch.randn(4, 2, side, side) + 1)
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    return {"state_dict": state, "global_step": 7, **identity(network.eval(), SEEN)}


@pytest.mark.parametrize("classes", [0, 5])
def test_a_network_gives_the_same_features_again(classes: int) -> None:
    network = ours(classes)
    stored = restore(used(network), FILE)
    image = torch.randn(3, 2, 16, 16)
    assert (stored.step, stored.preprocessing) == (7, SEEN)
    assert not stored.network.training
    assert torch.equal(stored.network.features(image), network.features(image))


def test_a_model_of_timm_gives_the_same_features_again() -> None:
    network, image = TimmEncoder("resnet18", 2), torch.randn(3, 2, 32, 32)
    stored = restore(used(network), FILE)
    assert torch.equal(stored.network.features(image), network.features(image))


def test_the_average_of_the_weights_is_what_is_stored() -> None:
    network, average = ours(), ours()
    saved, other = used(network), used(average, "average.")
    saved["state_dict"] |= other["state_dict"]
    image = torch.randn(3, 2, 16, 16)
    assert torch.equal(restore(saved, FILE).network.features(image), average.features(image))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("preprocessing", "[]", "not how images were prepared"),
        ("preprocessing", '{"side": 1}', "not how images were prepared"),
        ("genotype", "{}", "whole network"),
        ("genotype", "(", "whole network"),
        ("size", '{"width": 3, "depth": 3, "stem": "cifar"}', "width 3: must be even"),
        ("size", '{"wide": 3}', "whole network"),
        ("state_dict", {}, "whole network"),
        ("state_dict", {3: torch.zeros(1)}, "whole network"),
        ("global_step", float("inf"), "whole network"),
        ("model", "os.system", "timm has no such model"),
        ("model", "resnet18", "whole network"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(key: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        restore({**used(ours()), key: value}, FILE)
    assert str(error.value).startswith("run.ckpt: does not hold a whole network (")
    assert "\n" not in str(error.value)


def test_a_search_has_no_features() -> None:
    with pytest.raises(ValueError, match=r"run.ckpt: holds a search, .* mae-nas pretrain"):
        restore({"state_dict": {}, "global_step": 1}, FILE)


def test_a_network_starts_from_stored_weights_but_for_its_heads() -> None:
    given, network = ours(0), ours(3)
    heads = {k: v.clone() for k, v in network.state_dict().items() if "backbone" not in k}
    start_from(network, used(given), FILE, 2)
    image = torch.randn(3, 2, 16, 16)
    assert torch.equal(network.eval().features(image), given.features(image))
    assert heads
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in heads.items())


@pytest.mark.parametrize(
    ("given", "channels", "said"),
    [
        (ours(name="PDARTS"), 2, "is of another genotype; use genotype=run.ckpt"),
        (
            ours(size=replace(SIZE, width=6)),
            2,
            "is of another size; use network.width=6 network.depth=3 network.stem=cifar",
        ),
        (ours(), 3, "is of images of 2 channels, not 3"),
        (TimmEncoder("resnet18", 2), 2, "holds a model of timm"),
    ],
)
def test_other_weights_are_refused(given: Encoder, channels: int, said: str) -> None:
    network = ours()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(ValueError, match=f"^init_from: run.ckpt: {said}"):
        start_from(network, used(given), FILE, channels)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_random_weights_are_the_seeds_and_know_the_images_scale() -> None:
    saved = used(ours(0))
    batches = [Batch(100 + torch.randn(8, 2, 16, 16), torch.arange(8), 1) for _ in range(40)]
    cpu = torch.device("cpu")
    one, again, other = (untrained(saved, seed, batches, cpu) for seed in (1, 1, 2))
    image = batches[0].image
    assert torch.equal(one.features(image), again.features(image))
    assert not torch.equal(one.features(image), other.features(image))
    # By statistics of a new network, 0 and 1, features of such images would be in the hundreds.
    assert float(one.features(image).detach().abs().max()) < 10
