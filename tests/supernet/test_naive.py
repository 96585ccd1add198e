"""The supernet against a DARTS forward written independently, from a flat dict of weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mae_nas.relaxations import DARTS
from mae_nas.spaces import S0, S1, S2, S3, S4, SearchSpace
from mae_nas.supernet import ReferenceCell, Supernet, SupernetSize

Weights = Mapping[str, Tensor]


def norm(x: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], x)


def separable(x: Tensor, w: Weights, at: str, stride: int, dilation: int) -> Tensor:
    weight = w[at + "depthwise.weight"]
    reach = dilation * (weight.shape[-1] - 1) // 2
    padded = functional.pad(x.clamp(min=0), [reach] * 4)
    y = functional.conv2d(padded, weight, None, stride, 0, dilation, x.shape[1])
    return norm(pointwise(y, w[at + "pointwise.weight"]))


def halve(x: Tensor, w: Weights, at: str) -> Tensor:
    x = x.clamp(min=0)
    even = pointwise(x[:, :, 0::2, 0::2], w[at + "even.weight"])
    return norm(torch.cat([even, pointwise(x[:, :, 1::2, 1::2], w[at + "odd.weight"])], 1))


def operation(name: str, x: Tensor, w: Weights, at: str, stride: int) -> Tensor:
    if name == "skip_connect":
        return x if stride == 1 else halve(x, w, at)
    if name == "noise":
        return torch.randn_like(x[:, :, ::stride, ::stride])
    if name == "max_pool_3x3":
        return norm(functional.max_pool2d(x, 3, stride, 1))
    if name == "avg_pool_3x3":
        total = functional.avg_pool2d(x, 3, stride, 1, divisor_override=1)
        inside = functional.avg_pool2d(torch.ones_like(x), 3, stride, 1, divisor_override=1)
        return norm(total / inside)
    if name.startswith("dil"):
        return separable(x, w, at, stride, 2)
    return separable(separable(x, w, at + "first.", stride, 1), w, at + "second.", 1, 1)


def cell(
    states: tuple[Tensor, Tensor],
    w: Weights,
    at: str,
    candidates: list[list[str]],
    mixing: Tensor,
    is_reduction: bool,
) -> Tensor:
    s0, s1 = states
    if s0.shape[-1] == s1.shape[-1]:
        s0 = norm(pointwise(s0.clamp(min=0), w[at + "preprocess0.conv.weight"]))
    else:
        s0 = halve(s0, w, at + "preprocess0.")
    nodes = [s0, norm(pointwise(s1.clamp(min=0), w[at + "preprocess1.conv.weight"]))]
    edge = 0
    for _ in range(4):
        total = torch.zeros(())
        for source, x in enumerate(nodes):
            stride = 2 if is_reduction and source < 2 else 1
            for k, name in enumerate(candidates[edge]):
                if name != "none":
                    here = f"{at}edges.{edge}.candidates.{name}."
                    total = total + mixing[edge, k] * operation(name, x, w, here, stride)
            edge += 1
        nodes.append(total)
    return torch.cat(nodes[2:], 1)


def stem(image: Tensor, w: Weights, strides: list[int]) -> tuple[Tensor, Tensor]:
    outputs, x = [], image
    for i, stride in enumerate(strides):
        at = f"backbone.stem.norm{i}."
        x = functional.conv2d(x, w[f"backbone.stem.conv{i}.weight"], None, stride, 1)
        x = norm(x) * w[at + "weight"][:, None, None] + w[at + "bias"][:, None, None]
        outputs.append(x)
        x = x.clamp(min=0)
    return (outputs[0], outputs[0]) if len(strides) == 1 else (outputs[1], outputs[2])


def naive(
    image: Tensor,
    w: Weights,
    alphas: Mapping[str, Tensor],
    names: Mapping[str, list[list[str]]],
    depth: int,
    strides: list[int],
) -> list[Tensor]:
    states = stem(image, w, strides)
    features = []
    for index in range(depth):
        kind = "reduce" if index in (depth // 3, 2 * depth // 3) else "normal"
        exponential = alphas[kind].exp()
        mixing = exponential / exponential.sum(1, keepdim=True)
        at = f"backbone.cells.{index}."
        states = states[1], cell(states, w, at, names[kind], mixing, kind == "reduce")
        if index in (depth // 3 - 1, 2 * depth // 3 - 1, depth - 1):
            features.append(states[1])
    return features


@pytest.fixture
def replayed_noise(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make noise a function of the number of draws alone (torch's depends on the memory layout)."""
    generator = torch.Generator()

    def _draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    monkeypatch.setattr(torch, "randn_like", _draw)
    return lambda: generator.manual_seed(5) and None


def weighted(maps: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    return torch.stack([(m * w).mean() for m, w in zip(maps, weights, strict=True)]).sum()


def cases() -> Iterator[tuple[SearchSpace, str, int, int, list[int]]]:
    yield S0(), "cifar", 8, 5, [1]
    yield S1(), "cifar", 8, 8, [1]
    yield S2(), "small", 16, 3, [2]
    yield S3(), "imagenet", 64, 4, [2, 2, 2]
    yield S4(), "small", 16, 4, [2]
    yield S0(), "imagenet", 64, 3, [2, 2, 2]


@pytest.mark.parametrize(("space", "stem_name", "side", "depth", "strides"), list(cases()))
def test_supernet_equals_a_naive_darts_forward_and_its_gradients(
    space: SearchSpace,
    stem_name: str,
    side: int,
    depth: int,
    strides: list[int],
    replayed_noise: Callable[[], None],
) -> None:
    size = SupernetSize(4, depth, stem_name)  # type: ignore[arg-type]
    net = Supernet(space, 3, 3, size.plan(space, side), ReferenceCell).double()
    relaxation = DARTS(space).double()
    for parameter in [*relaxation.parameters(), *net.backbone.stem.parameters()]:
        torch.nn.init.normal_(parameter)
    image = torch.randn(3, 3, side, side, dtype=torch.float64)

    replayed_noise()
    features = net(image, relaxation.mixture())
    replayed_noise()
    w = dict(net.named_parameters())
    alphas = dict(relaxation.alphas.items())
    names = {kind: [list(row) for row in space.primitives(kind)] for kind in alphas}
    expected = naive(image, w, alphas, names, depth, strides)

    assert len(features) == 3
    weights = [torch.randn_like(feature) for feature in expected]
    for feature, reference in zip(features, expected, strict=True):
        assert feature.shape == reference.shape
        assert (feature - reference).abs().max() < 1e-10
    variables = [*alphas.values(), *w.values()]
    ours, theirs = (
        torch.autograd.grad(weighted(maps, weights), variables) for maps in (features, expected)
    )
    for gradient, reference in zip(ours, theirs, strict=True):
        assert reference.abs().max() > 0
        assert (gradient - reference).abs().max() < 1e-10
