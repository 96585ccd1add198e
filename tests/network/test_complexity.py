import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mae_nas.backbone import StemName
from mae_nas.genotype import PUBLISHED
from mae_nas.network.complexity import Place, kept_bytes, measure_complexity, widest
from mae_nas.network.derived import NetworkSize

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "complexity.json").read_text(encoding="utf-8")
)
QUICK = ("NASNet", "AmoebaNet", "DARTS_V2", "PC_DARTS_cifar", "PDARTS", "GDAS_V1")
CASES = [
    pytest.param(
        *(name, where),
        marks=[] if where == "cifar10_C36_L20" and name in QUICK else pytest.mark.slow,
    )
    for name, places in GOLDEN.items()
    for where in places
]


def place(width: int, depth: int, classes: int, side: int) -> Place:
    stem: StemName = "imagenet" if side > 48 else "cifar"
    return Place(NetworkSize(width, depth, stem), 3, side, classes)


@pytest.mark.parametrize(("name", "where"), CASES)
def test_costs_are_those_that_were_published(name: str, where: str) -> None:
    """Figures counted with the original code of DARTS: C, cells, classes, side, M each."""
    *size, params, with_aux, macs = GOLDEN[name][where]
    found = measure_complexity(PUBLISHED[name], place(*size))
    assert round(found.params / 1e6, 4) == pytest.approx(params, abs=1e-9)
    assert round(found.params_with_aux / 1e6, 4) == pytest.approx(with_aux, abs=1e-9)
    assert found.macs / 1e6 == pytest.approx(macs, rel=1e-5)


CIFAR = (36, 20, 10, 32)


@pytest.mark.parametrize(
    ("name", "size", "printed"),
    [
        ("NASNet", CIFAR, {"thop_without_norms": 608.3, "thop": 629.3, "ptflops": 624.2}),
        ("DARTS_V2", CIFAR, {"thop": 549.8, "ptflops": 547.5}),
        ("PC_DARTS_cifar", CIFAR, {"thop_without_norms": 558.2}),
        ("DARTSminus_cifar10_s0_0", CIFAR, {"thop": 568.2}),
        ("DARTS_V2", (48, 14, 1000, 224), {"ptflops": 544.6}),
    ],
)
def test_other_conventions_give_the_figures_of_papers_that_used_them(
    name: str, size: tuple[int, int, int, int], printed: dict[str, float]
) -> None:
    found = measure_complexity(PUBLISHED[name], place(*size))
    for convention, figure in printed.items():
        assert found.conventions[convention] / 1e6 == pytest.approx(figure, abs=0.051)


def test_the_widest_network_fits_and_the_next_does_not() -> None:
    darts, start = PUBLISHED["DARTS_V2"], place(48, 3, 1000, 64)
    found = widest(darts, start, 60e6)
    wider = Place(NetworkSize(found.size.width + 2, 3, "imagenet"), 3, 64, 1000)
    assert found.size.width % 2 == 0
    assert measure_complexity(darts, found).macs <= 60e6 < measure_complexity(darts, wider).macs
    with pytest.raises(ValueError, match=r"max_macs 0\.001: at width 2 the network has"):
        widest(darts, start, 1e3)


class Doubled(torch.autograd.Function):
    """Saves one tensor by torch, and holds two of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - torch's
        ctx.save_for_backward(x)
        ctx.held = {"one": [x.new_zeros(100)], "same": x}
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401, ARG004 - torch's
        return 2 * gradient


def test_what_functions_hold_themselves_is_counted_once() -> None:
    weight, x = torch.ones(5, 7, requires_grad=True), torch.ones(3, 5)

    def run() -> Tensor:
        return Doubled.apply(x @ weight).sum()

    # x for the weight's gradient; the product, saved and held; a hundred zeros.
    assert kept_bytes(run, [weight]) == 4 * (3 * 5 + 3 * 7 + 100)


class Holding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, thing: object) -> Tensor:  # noqa: ANN401 - torch's
        ctx.thing = thing
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401, ARG004 - torch's
        return 2 * gradient, None


def test_counting_what_is_kept_keeps_nothing() -> None:
    weight, things = torch.ones(5, requires_grad=True), []

    def run() -> Tensor:
        thing = nn.Identity()
        things.append(weakref.ref(thing))
        return Holding.apply(weight, thing).exp().sum()  # exp saves what it gives

    assert kept_bytes(run, [weight]) == 4 * 5
    assert things[0]() is None
