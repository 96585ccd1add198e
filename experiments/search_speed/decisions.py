"""Why searches in float32 part at once: ReLUs and maxima decide otherwise than in float64.

    python experiments/search_speed/decisions.py

A first gradient of α by the reference, at the setting of trajectories.py, in float64 and in
float32; then in float32 with the signs that float64 gave its ReLUs, with the places that it gave
its maxima, and with both. Prints a record and adds it to decisions.jsonl.
"""

import json
import os
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mae_nas.backbone import CELL_KINDS
from mae_nas.batch import Batch
from mae_nas.decoders import HierarchicalDecoder
from mae_nas.masking import Masking, VisibleMap
from mae_nas.network.latency import describe_device
from mae_nas.objectives import Reconstruction
from mae_nas.relaxations import Mixture
from mae_nas.runs.records import git_state, versions
from mae_nas.spaces import S0
from mae_nas.supernet import CellMaker, FusedCell, ReferenceCell, Supernet, SupernetSize

HERE = Path(__file__).parent
SIDE, IMAGES = 32, 8
MAX_POOL = functional.max_pool2d


@dataclass
class Decisions:
    """What a pass decides: where ReLUs let through, and which sites hold maxima; in order.

    Args:
        known: another pass's, to count what differs from it.
        obeyed: "signs" and "places": which of them are taken from there.
    """

    known: "Decisions | None" = None
    obeyed: frozenset[str] = frozenset()
    signs: list[Tensor] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)

    def relu(self, x: Tensor) -> Tensor:
        """In place of `Tensor.relu`."""
        self.signs.append(x.detach() > 0)
        if self.known is None or "signs" not in self.obeyed:
            return functional.relu(x)
        return x * self.known.signs[len(self.signs) - 1]

    def max_pool2d(self, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
        """In place of torch's."""
        y, places = MAX_POOL(x, kernel, stride, padding, return_indices=True)
        self.places.append(places)
        if self.known is None or "places" not in self.obeyed:
            return y
        wanted = self.known.places[len(self.places) - 1]
        return x.flatten(2).gather(2, wanted.flatten(2)).view_as(y)

    def differing(self) -> dict[str, list[int]]:
        """How many differ from the known ones, of how many."""
        assert self.known is not None
        pairs = {"signs": (self.signs, self.known.signs)}
        pairs["places"] = (self.places, self.known.places)
        return {
            name: [
                sum(int((a != b).sum()) for a, b in zip(*both, strict=True)),
                sum(each.numel() for each in both[0]),
            ]
            for name, both in pairs.items()
        }


def images() -> Tensor:
    """The first image of each of eight classes, normalised, float64."""
    folder = Path(os.environ.get("MAE_NAS_DATA", "data")) / "cifar10" / "test"
    classes = sorted(path for path in folder.iterdir() if path.is_dir())[:IMAGES]
    pixels = [np.asarray(Image.open(sorted(each.iterdir())[0])) for each in classes]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).double()
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


class FirstStep:
    """The start of a search, to compute its α gradient in several ways."""

    def __init__(self, image: Tensor) -> None:
        torch.manual_seed(0)
        self.space, self.image = S0(), image
        self.plan = SupernetSize(4, 3).plan(self.space, SIDE)
        self.weights = Supernet(self.space, 3, 3, self.plan, ReferenceCell).state_dict()
        decoder = HierarchicalDecoder(self.plan.features, 3)
        self.objective = Reconstruction(decoder, self.plan.features, SIDE, Masking())

    def gradient(self, make_cell: CellMaker, dtype: torch.dtype) -> Tensor:
        """Of all α in one vector, float64."""
        net = Supernet(self.space, 3, 3, self.plan, make_cell).to(dtype)
        net.load_state_dict(self.weights)
        alphas = [torch.zeros(self.space.shape(kind), dtype=dtype) for kind in CELL_KINDS]
        mixtures = {
            kind: Mixture(alpha.requires_grad_().softmax(-1))
            for kind, alpha in zip(CELL_KINDS, alphas, strict=True)
        }

        def encode(image: Tensor, visible: VisibleMap | None) -> Sequence[Tensor]:
            return net(image, mixtures, visible)

        batch = Batch(self.image.to(dtype), torch.arange(IMAGES), 1)
        loss = deepcopy(self.objective).to(dtype)(encode, batch)[0]
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss, alphas)]).double()

    def decided(self, decisions: Decisions, dtype: torch.dtype) -> Tensor:
        """By the reference, with these decisions."""
        with (
            patch.object(torch.Tensor, "relu", lambda x: decisions.relu(x)),
            patch.object(functional, "max_pool2d", decisions.max_pool2d),
        ):
            return self.gradient(ReferenceCell, dtype)


def distance(one: Tensor, other: Tensor) -> float:
    """Of the other's length."""
    return ((one - other).norm() / other.norm()).item()


def main() -> None:
    """Compare, print and record."""
    torch.set_num_threads(1)
    start = FirstStep(images())
    exact = Decisions()
    wanted = start.decided(exact, torch.float64)
    rows = []
    for obeyed in ([], ["signs"], ["places"], ["signs", "places"]):
        here = Decisions(exact, frozenset(obeyed))
        apart = distance(start.decided(here, torch.float32), wanted)
        rows.append({"as_in_float64": obeyed, "apart": apart, "differing": here.differing()})
    by_cell = partial(start.gradient, dtype=torch.float32)
    record = {
        "float32_from_float64": rows,
        "fused_from_reference_in_float32": distance(by_cell(FusedCell), by_cell(ReferenceCell)),
        "fused_from_reference_in_float64": distance(
            start.gradient(FusedCell, torch.float64), wanted
        ),
        "git": git_state(),
        "versions": versions(),
        "device": describe_device(torch.device("cpu")),
    }
    with (HERE / "decisions.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    sys.stdout.write(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
