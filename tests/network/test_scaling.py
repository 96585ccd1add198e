from collections.abc import Mapping

import pytest
import torch
from torch import nn

from mae_nas.genotype import PUBLISHED
from mae_nas.network import NetworkSize
from mae_nas.network.complexity import Place, count_parameters
from mae_nas.network.latency import Timing
from mae_nas.network.scaling import _crossing, width_as_fast

PLACE = Place(NetworkSize(4, 3, "small", auxiliary=False), 2, 16, 0)
IMAGE = torch.randn(2, 2, 16, 16)


@pytest.mark.parametrize("first", [2, 4, 6, 22, 64, 1000, 4096])
def test_the_first_slower_width_is_found(first: int) -> None:
    tried: list[int] = []

    def is_slower(width: int) -> bool:
        tried.append(width)
        return width >= first

    assert _crossing(is_slower) == first
    assert all(width % 2 == 0 and width >= 2 for width in tried)
    assert len(tried) < 30


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by which a parameter takes a second."""

    def taken(networks: Mapping[str, nn.Module], *_: object) -> dict[str, Timing]:
        seconds = {name: float(count_parameters(net)) for name, net in networks.items()}
        return {name: Timing(1, 5, s, s, s, s) for name, s in seconds.items()}

    monkeypatch.setattr("mae_nas.network.scaling.time_networks", taken)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("parameters", [900, 30_000, 1_000_000])
def test_no_other_width_is_nearer(parameters: int) -> None:
    reference = nn.Linear(parameters, 1, bias=False)
    width = width_as_fast(PUBLISHED["DARTS_V2"], PLACE, IMAGE, reference, 1.0)

    def away(width: int) -> float:
        size = NetworkSize(width, 3, "small", auxiliary=False)
        made = Place(size, 2, 16, 0).network(PUBLISHED["DARTS_V2"])
        return abs(count_parameters(made) / parameters - 1)

    assert width % 2 == 0
    assert all(away(width) <= away(other) for other in (width - 2, width + 2) if other > 0)
    same = width_as_fast(PUBLISHED["DARTS_V2"], PLACE, IMAGE, float(parameters), 1.0)
    assert same == width


@pytest.mark.usefixtures("clock")
def test_what_cannot_be_as_fast_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at width 2 .* times as long .* network\.depth"):
        width_as_fast(PUBLISHED["DARTS_V2"], PLACE, IMAGE, 10.0, 1.0)
