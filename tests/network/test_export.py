"""Files of a network, read back by fresh processes; folding against the network itself."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mae_nas.backbone import StemName
from mae_nas.genotype import PUBLISHED
from mae_nas.masking import BatchNorm
from mae_nas.network import DerivedNetwork, NetworkSize
from mae_nas.network.complexity import Place
from mae_nas.network.export import (
    FORMATS,
    Description,
    described,
    in_fresh_process,
    load_safetensors,
)
from mae_nas.network.folding import folded

PLACE = Place(NetworkSize(4, 3, "cifar"), channels=2, side=16, classes=3)


def used(name: str, place: Place = PLACE) -> DerivedNetwork:
    """A network whose statistics and affine parts are none of a new one's."""
    torch.manual_seed(3)
    network = place.network(PUBLISHED[name])
    for part in network.modules():
        if isinstance(part, BatchNorm):
            part.weight.data.uniform_(0.5, 2)
            part.bias.data.normal_()
    network.train()
    for _ in range(3):
        network(torch.randn(4, place.channels, place.side, place.side) + 1)
    return network.eval()


def description(name: str = "NASNet") -> Description:
    return Description(PLACE, PUBLISHED[name], ("a", "b", "ç"), (0.5, 0.25), (0.2, 0.1), 255.0)


@pytest.mark.parametrize("stem", ["cifar", "small", "imagenet"])
@pytest.mark.parametrize("name", ["DARTS_V2", "AmoebaNet"])
def test_folding_changes_nothing_but_rounding(name: str, stem: StemName) -> None:
    side = 64 if stem == "imagenet" else 32
    place = Place(NetworkSize(4, 3, stem), 3, side, 5)
    network = used(name, place).double()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    image = torch.randn(2, 3, side, side, dtype=torch.float64)
    one = folded(network)
    torch.testing.assert_close(one(image), network(image), rtol=1e-10, atol=1e-10)
    assert not any(isinstance(part, BatchNorm) for part in one.modules())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_description_survives_its_text() -> None:
    given = description()
    assert Description.from_json(given.to_json()) == given
    facts = json.loads(given.to_json())
    assert facts["classes"] == ["a", "b", "ç"]
    assert facts["place"]["side"] == 16
    for text in ("", "[]", "{}", '{"format": "mae_nas.network/1"}', '{"format": 3}'):
        with pytest.raises(ValueError, match="not the description of a network"):
            Description.from_json(text)


@pytest.mark.parametrize(
    "kind",
    ["safetensors"]
    + [pytest.param(kind, marks=pytest.mark.slow) for kind in ("timm", "onnx", "torch_export")],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_fresh_process_computes_the_same(kind: str, tmp_path: Path) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    network = used("NASNet")
    suffix, write = FORMATS[kind]
    file = tmp_path / f"net{suffix}"
    write(network, description(), file)
    images = np.random.default_rng(0).normal(size=(7, 2, 16, 16)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    in_fresh_process(kind, file, tmp_path / "images.npy", tmp_path / "scores.npy")
    found = np.load(tmp_path / "scores.npy")
    wanted = network(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_safetensors_file_says_what_it_holds_and_a_foreign_one_is_refused(
    tmp_path: Path,
) -> None:
    from safetensors.torch import save_file

    network, file = used("NASNet"), tmp_path / "net.safetensors"
    FORMATS["safetensors"][1](network, description(), file)
    loaded, said = load_safetensors(file)
    assert said == description()
    assert described(file) == said
    assert loaded.auxiliary_head is None
    image = torch.randn(2, 2, 16, 16)
    assert torch.equal(loaded(image), network(image))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: not the description of a network"):
        described(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(ValueError, match=r"text\.safetensors: not a safetensors file"):
        described(tmp_path / "text.safetensors")


def test_what_cannot_be_read_back_is_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    wrong = dataclasses.replace(description(), place=Place(NetworkSize(6, 3), 2, 16, 3))
    FORMATS["safetensors"][1](used("NASNet"), wrong, file)
    np.save(tmp_path / "images.npy", np.zeros((1, 2, 16, 16), np.float32))
    with pytest.raises(ValueError, match="export: safetensors: the file cannot be read back") as e:
        in_fresh_process("safetensors", file, tmp_path / "images.npy", tmp_path / "scores.npy")
    assert len(str(e.value).splitlines()) == 1
