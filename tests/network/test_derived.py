"""The network against its definition, written out with torch's functions."""

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mae_nas.backbone import StemName
from mae_nas.genotype import PUBLISHED, CellGenotype, Edge, Genotype
from mae_nas.masking import BatchNorm
from mae_nas.network import DerivedNetwork, NetworkSize
from mae_nas.network.cell import useful_edges

State = Mapping[str, Tensor]
EPS = 1e-5

NORMAL = CellGenotype(
    (
        Edge("sep_conv_3x3", 0, 2),
        Edge("dil_conv_5x5", 1, 2),
        Edge("max_pool_3x3", 0, 3),
        Edge("skip_connect", 1, 3),
        Edge("skip_connect", 1, 3),
        Edge("none", 2, 4),
        Edge("conv_7x1_1x7", 3, 5),
        Edge("avg_pool_3x3", 4, 5),
    ),
    concat=(2, 4, 5),
)
REDUCE = CellGenotype(
    (
        Edge("skip_connect", 0, 2),
        Edge("sep_conv_7x7", 1, 2),
        Edge("conv_7x1_1x7", 1, 3),
        Edge("avg_pool_3x3", 2, 3),
        Edge("dil_conv_3x3", 0, 4),
    ),
    concat=(3, 2),
)
MIXED = Genotype(NORMAL, REDUCE)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    scale = state[f"{name}.weight"] / (variance + EPS).sqrt()
    shift = state[f"{name}.bias"] - mean * scale
    return x * scale[:, None, None] + shift[:, None, None]


def separable(state: State, name: str, x: Tensor, stride: int, dilation: int) -> Tensor:
    depth, point = state[f"{name}.depthwise.weight"], state[f"{name}.pointwise.weight"]
    pad = dilation * (depth.shape[-1] // 2)
    y = functional.conv2d(
        x.relu(), depth, stride=stride, padding=pad, dilation=dilation, groups=len(depth)
    )
    return norm(state, f"{name}.norm", functional.conv2d(y, point))


def factorised(state: State, name: str, x: Tensor) -> Tensor:
    x = x.relu()
    halves = [
        functional.conv2d(x, state[f"{name}.even.weight"], stride=2),
        functional.conv2d(x[:, :, 1:, 1:], state[f"{name}.odd.weight"], stride=2),
    ]
    return norm(state, f"{name}.norm", torch.cat(halves, 1))


def operate(state: State, name: str, primitive: str, x: Tensor, stride: int) -> Tensor:
    if primitive == "skip_connect":
        return x if stride == 1 else factorised(state, name, x)
    if primitive == "max_pool_3x3":
        return functional.max_pool2d(x, 3, stride, padding=1)
    if primitive == "avg_pool_3x3":
        return functional.avg_pool2d(x, 3, stride, padding=1, count_include_pad=False)
    if primitive.startswith("sep_conv"):
        return separable(
            state, f"{name}.second", separable(state, f"{name}.first", x, stride, 1), 1, 1
        )
    if primitive.startswith("dil_conv"):
        return separable(state, name, x, stride, 2)
    assert primitive == "conv_7x1_1x7"
    y = functional.conv2d(x.relu(), state[f"{name}.row.weight"], stride=(1, stride), padding=(0, 3))
    y = functional.conv2d(y, state[f"{name}.column.weight"], stride=(stride, 1), padding=(3, 0))
    return norm(state, f"{name}.norm", y)


def entered(state: State, name: str, x: Tensor) -> Tensor:
    if f"{name}.even.weight" in state:
        return factorised(state, name, x)
    return norm(state, f"{name}.norm", functional.conv2d(x.relu(), state[f"{name}.conv.weight"]))


def naive(
    genotype: Genotype, state: State, image: Tensor, depth: int, keep: Tensor | None = None
) -> Tensor:
    """Class scores, edge by edge."""
    x = functional.conv2d(image, state["backbone.stem.conv0.weight"], padding=1)
    before_last = last = norm(state, "backbone.stem.norm0", x)
    number = 0
    for index in range(depth):
        is_reduction = index in (depth // 3, 2 * depth // 3)
        cell = genotype.reduce if is_reduction else genotype.normal
        where = f"backbone.cells.{index}"
        nodes = {
            0: entered(state, f"{where}.preprocess0", before_last),
            1: entered(state, f"{where}.preprocess1", last),
        }
        for place, edge in enumerate(useful_edges(cell)):
            x = nodes[edge.source]
            stride = 2 if is_reduction and edge.source < 2 else 1
            if edge.primitive == "none":
                y = torch.zeros_like(x)
            else:
                y = operate(state, f"{where}.operations.{place}", edge.primitive, x, stride)
            is_identity = edge.primitive == "skip_connect" and stride == 1
            if keep is not None and not is_identity:
                y = y * keep[number][:, None, None, None]
            nodes[edge.target] = nodes.get(edge.target, torch.zeros_like(y)) + y
            number += 1
        before_last, last = last, torch.cat([nodes[node] for node in cell.concat], 1)
    return functional.linear(
        last.mean((2, 3)), state["classifier.weight"], state["classifier.bias"]
    )


def network(genotype: Genotype, depth: int = 4, **sizes: int) -> DerivedNetwork:
    torch.manual_seed(1)
    sizes = {"channels": 2, "side": 16, "classes": 5} | sizes
    made = DerivedNetwork(genotype, NetworkSize(6, depth, "cifar"), **sizes).double()
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made


@pytest.mark.parametrize("genotype", [MIXED, PUBLISHED["NASNet"], PUBLISHED["GDAS_V1"]])
def test_network_equals_its_definition(genotype: Genotype) -> None:
    made = network(genotype)
    image = torch.randn(3, 2, 16, 16, dtype=torch.float64)
    keep = torch.rand(made.paths, 3, dtype=torch.float64)
    state = dict(made.named_parameters())
    wanted, dropped = naive(genotype, state, image, 4), naive(genotype, state, image, 4, keep)
    torch.testing.assert_close(made(image), wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(made.scores(image, keep).main, dropped, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(wanted, dropped)
    names = list(dict(made.named_parameters()))
    ours = torch.autograd.grad(made(image).square().sum(), list(state.values()), allow_unused=True)
    naives = torch.autograd.grad(
        naive(genotype, state, image, 4).square().sum(), list(state.values()), allow_unused=True
    )
    for name, mine, other in zip(names, ours, naives, strict=True):
        assert (mine is None) == (other is None) == name.startswith("auxiliary_head"), name
        if mine is not None and other is not None:
            torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("stem", ["cifar", "small", "imagenet"])
@pytest.mark.parametrize("name", ["NASNet", "DARTS_V2"])
def test_features_are_what_is_announced_and_what_the_classifier_sees(
    name: str, stem: StemName
) -> None:
    made = DerivedNetwork(PUBLISHED[name], NetworkSize(4, 5, stem), 3, 64, 7).eval()
    image = torch.randn(2, 3, 64, 64)
    maps = made.maps(image)
    for found, info in zip(maps, made.feature_info, strict=True):
        side = 64 // info.stride
        assert found.shape == (2, info.channels, side, side)
    torch.testing.assert_close(made.features(image), maps[-1].mean((2, 3)))
    torch.testing.assert_close(made(image), made.classifier(made.features(image)))
    main, auxiliary = made.scores(image, None)
    torch.testing.assert_close(main, made(image))
    assert auxiliary is not None
    assert auxiliary.shape == (2, 7)


def test_every_weight_that_learns_gets_a_gradient() -> None:
    lonely = CellGenotype((Edge("sep_conv_3x3", 1, 2), Edge("skip_connect", 1, 3)), (2, 3))
    made = network(Genotype(lonely, lonely))
    scores = made.scores(torch.randn(2, 2, 16, 16, dtype=torch.float64), None)
    assert scores.auxiliary is not None
    (scores.main.sum() + scores.auxiliary.square().sum()).backward()
    for name, parameter in made.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.requires_grad == (".preprocess0." not in name), name


def test_what_leads_nowhere_is_left_out() -> None:
    cell = CellGenotype(
        (Edge("sep_conv_3x3", 0, 2), Edge("skip_connect", 1, 3), Edge("sep_conv_3x3", 2, 4)), (3,)
    )
    assert useful_edges(cell) == [Edge("skip_connect", 1, 3)]
    assert network(Genotype(cell, cell)).paths == 4


def test_networks_that_cannot_be_are_refused_in_a_line_each() -> None:
    strange = CellGenotype((Edge("conv_9x9", 0, 2), Edge("sep_conv_3x3", 1, 2)), (2,))
    with pytest.raises(ValueError, match="normal cell: conv_9x9 0→2: no such operation") as caught:
        network(Genotype(strange, strange))
    assert len(str(caught.value).splitlines()) == 2
    three = CellGenotype((Edge("skip_connect", 0, 3),), (3,), inputs=3)
    with pytest.raises(ValueError, match="has 3 inputs"):
        network(Genotype(three, three))
    with pytest.raises(ValueError, match="side 18 is not a multiple of 4"):
        network(PUBLISHED["DARTS_V2"], side=18)
    with pytest.raises(ValueError, match=r"width 5: must be even.*\n?"):
        NetworkSize(5, 8)
    with pytest.raises(ValueError, match="depth 2"):
        NetworkSize(4, 2)


def test_norms_get_whole_gradients_and_the_same_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    made = DerivedNetwork(PUBLISHED["DARTS_V2"], NetworkSize(4, 3, "cifar"), 3, 16, 7).double()
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    twin = copy.deepcopy(made)
    layouts = []

    def seen(_part: nn.Module, _given: object, output: Tensor) -> None:
        output.register_hook(
            lambda g: layouts.append(g.is_contiguous(memory_format=torch.channels_last))
        )

    for part in made.modules():
        if isinstance(part, BatchNorm):
            part.register_forward_hook(seen)
    made(image).square().sum().backward()
    assert len(layouts) > 10
    assert all(layouts)
    monkeypatch.setattr("mae_nas.network.cell._WholeGradient.apply", lambda x: x)
    twin(image).square().sum().backward()
    for (name, one), other in zip(made.named_parameters(), twin.parameters(), strict=True):
        if other.grad is not None:  # a classifier's other head
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12, msg=name)
