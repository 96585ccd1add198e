"""A network in a checkpoint: what it says of itself, and the network made again from that alone."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_nas.batch import Batch
from mae_nas.data.stream import Preprocessing
from mae_nas.genotype import Genotype
from mae_nas.network.derived import DerivedNetwork, NetworkSize
from mae_nas.network.encoder import Encoder
from mae_nas.network.peers import TimmEncoder

_HEADS = ("classifier.", "auxiliary_head.")
_JUDGED, _PRESENT = "average.", "network."  # the average of the weights, where there is one


def identity(network: Encoder, preprocessing: Preprocessing) -> dict[str, str]:
    """What a checkpoint of its training says of the network: all that `restore` needs."""
    said = {"preprocessing": preprocessing.to_json()}
    if isinstance(network, TimmEncoder):
        return said | {"model": network.name}
    assert isinstance(network, DerivedNetwork)
    return said | {
        "genotype": json.dumps(network.genotype.to_dict(), sort_keys=True),
        "size": json.dumps(asdict(network.size), sort_keys=True),
    }


@dataclass(frozen=True)
class Stored:
    """A network without a classifier, on the CPU, in evaluation mode.

    Args:
        network: with its weights.
        preprocessing: of the images that it was trained on.
        step: that the weights are of.
    """

    network: Encoder
    preprocessing: Preprocessing
    step: int


def restore(checkpoint: Mapping[str, Any], path: Path) -> Stored:
    """The encoder in a checkpoint of a training or pretraining, as data: nothing else is built.

    Raises:
        ValueError: in one line, `path` named: it holds none, or is damaged.
    """
    if "preprocessing" not in checkpoint:
        raise ValueError(
            f"{path}: holds a search, which has no features of its own; mae-nas pretrain "
            "genotype=RUN makes a network that has"
        )
    try:
        preprocessing = Preprocessing.from_json(checkpoint["preprocessing"])
        network = _made(checkpoint, preprocessing)
        network.load_state_dict(weights_of(checkpoint))
        return Stored(network.eval(), preprocessing, int(checkpoint["global_step"]))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: does not hold a whole network ({reason})") from None


def untrained(
    checkpoint: Mapping[str, Any], seed: int, batches: Iterable[Batch], device: torch.device
) -> Encoder:
    """A network of the same kind with weights drawn by `seed`, to compare with.

    The statistics of its norms are those of some images, or its features would be on no scale.
    """
    torch.manual_seed(seed)
    network = _made(checkpoint, Preprocessing.from_json(checkpoint["preprocessing"])).to(device)
    with torch.no_grad():
        for batch in batches:
            network.features(batch.image)
    return network.eval()


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of the network that is judged, without its heads."""
    state: Mapping[str, Tensor] = checkpoint["state_dict"]
    is_averaged = any(name.startswith(_JUDGED) for name in state)
    prefix = _JUDGED if is_averaged else _PRESENT
    named = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return {name: value for name, value in named.items() if not name.startswith(_HEADS)}


def _made(checkpoint: Mapping[str, Any], preprocessing: Preprocessing) -> Encoder:
    channels, side = preprocessing.channels, preprocessing.side
    if "model" in checkpoint:
        return TimmEncoder(str(checkpoint["model"]), channels)
    genotype = Genotype.from_dict(json.loads(checkpoint["genotype"]))
    size = NetworkSize(**json.loads(checkpoint["size"]))
    return DerivedNetwork(genotype, replace(size, auxiliary=False), channels, side, 0)


def start_from(
    network: DerivedNetwork, checkpoint: Mapping[str, Any], path: Path, channels: int
) -> Preprocessing:
    """Give the network the checkpoint's weights, all but those of heads; how it saw images.

    Raises:
        ValueError: they are of another network; in one line that says how to have this one.
    """
    found = restore(checkpoint, path).network
    if not isinstance(found, DerivedNetwork):
        raise ValueError(f"init_from: {path}: holds a model of timm, not a network of cells")
    if found.genotype != network.genotype:
        raise ValueError(f"init_from: {path}: is of another genotype; use genotype={path}")
    mine, theirs = replace(network.size, auxiliary=False), found.size
    if mine != theirs:
        keys = ("width", "depth", "stem")
        wanted = " ".join(f"network.{key}={getattr(theirs, key)}" for key in keys)
        raise ValueError(f"init_from: {path}: is of another size; use {wanted}")
    given = checkpoint["preprocessing"]
    if (known := Preprocessing.from_json(given).channels) != channels:
        raise ValueError(f"init_from: {path}: is of images of {known} channels, not {channels}")
    with torch.no_grad():
        network.load_state_dict(weights_of(checkpoint), strict=False)
    return Preprocessing.from_json(given)
