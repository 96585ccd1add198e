"""What every decoder must do: adding one to the package adds its tests."""

import inspect
import itertools
import pkgutil
from importlib import import_module

import pytest
import torch
from torch import Tensor

import mae_nas.decoders
from mae_nas.backbone import FeatureInfo
from mae_nas.decoders import Decoder


def decoders() -> list[type[Decoder]]:
    found: set[type[Decoder]] = set()
    for info in pkgutil.walk_packages(mae_nas.decoders.__path__, "mae_nas.decoders."):
        members = inspect.getmembers(import_module(info.name), inspect.isclass)
        found |= {c for _, c in members if issubclass(c, Decoder) and not inspect.isabstract(c)}
    return sorted(found, key=lambda c: c.__name__)


every_decoder = pytest.mark.parametrize("decoder", decoders())


def features(strides: tuple[int, ...]) -> list[FeatureInfo]:
    return [FeatureInfo(6 + 2 * i, stride) for i, stride in enumerate(strides)]


def maps(infos: list[FeatureInfo], side: int, batch: int = 3) -> list[Tensor]:
    sides = [side // info.stride for info in infos]
    return [
        torch.randn(batch, info.channels, s, s, requires_grad=True)
        for info, s in zip(infos, sides, strict=True)
    ]


def test_the_package_has_decoders() -> None:
    assert {c.__name__ for c in decoders()} >= {"HierarchicalDecoder", "UNetDecoder"}


@every_decoder
@pytest.mark.parametrize(
    ("strides", "side"),
    [((1, 2, 4), 32), ((1, 2, 4), 20), ((2, 4, 8), 64), ((8, 16, 32), 224), ((8, 16, 32), 64)],
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_image_has_the_size_of_the_input(
    decoder: type[Decoder], strides: tuple[int, ...], side: int, channels: int
) -> None:
    infos = features(strides)
    made = decoder(features=infos, channels=channels)  # type: ignore[call-arg]
    assert made(maps(infos, side, 2)).shape == (2, channels, side, side)


@every_decoder
@pytest.mark.parametrize(
    "taps", [t for n in (1, 2, 3) for t in itertools.combinations((1, 2, 3), n)]
)
def test_gradient_reaches_the_tapped_features_and_every_parameter(
    decoder: type[Decoder], taps: tuple[int, ...]
) -> None:
    infos = features((1, 2, 4))
    made = decoder(features=infos, channels=3, taps=taps)  # type: ignore[call-arg]
    assert made.taps == taps
    inputs = maps(infos, 16)
    given = inputs[: max(taps)]  # the encoder ends at the last tap in use
    made(given).square().sum().backward()
    for tap, feature in enumerate(inputs, start=1):
        if tap in taps:
            assert feature.grad is not None
            assert (feature.grad != 0).any(1).all(), "every site matters"
        else:
            assert feature.grad is None
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name


@every_decoder
def test_branches_sum_to_the_prediction(decoder: type[Decoder]) -> None:
    infos = features((2, 4, 8))
    made = decoder(features=infos, channels=3).double()  # type: ignore[call-arg]
    inputs = [m.double() for m in maps(infos, 16)]
    branches = list(made.branches(inputs))
    assert (torch.stack(branches).sum(0) - made(inputs)).abs().max() < 1e-12


@every_decoder
@pytest.mark.parametrize(("strides", "side"), [((1, 2, 4), 16), ((8, 16, 32), 96)])
def test_pointwise_says_whether_a_pixel_sees_only_the_cells_above_it(
    decoder: type[Decoder], strides: tuple[int, ...], side: int
) -> None:
    infos = features(strides)
    made = decoder(features=infos, channels=1).eval()  # type: ignore[call-arg]
    inputs = maps(infos, side)
    made(inputs)[0, 0, 5, 6].backward()
    is_local = True
    for feature, info in zip(inputs, infos, strict=True):
        assert feature.grad is not None
        seen = feature.grad[0].any(0).nonzero().tolist()
        is_local &= seen == [[5 // info.stride, 6 // info.stride]]
    assert made.is_pointwise == is_local


@every_decoder
def test_state_survives_a_round_trip(decoder: type[Decoder]) -> None:
    infos = features((1, 2, 4))
    first, second = (decoder(features=infos, channels=3) for _ in range(2))  # type: ignore[call-arg]
    inputs = maps(infos, 16)
    assert not torch.equal(first(inputs), second(inputs))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(inputs), second(inputs))


@every_decoder
def test_half_precision_stays_close(decoder: type[Decoder]) -> None:
    infos = features((1, 2, 4))
    made = decoder(features=infos, channels=3)  # type: ignore[call-arg]
    inputs = maps(infos, 16)
    exact = made(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        half = made(inputs)
    assert (half.float() - exact).abs().mean() < 0.02 * exact.abs().mean() + 1e-6
