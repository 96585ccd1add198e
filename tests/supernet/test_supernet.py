from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from mae_nas.backbone import CellState
from mae_nas.masking import VisibleMap
from mae_nas.network.complexity import count_multiply_adds, count_parameters
from mae_nas.relaxations import DARTS
from mae_nas.spaces import S0, S1, S2, S3, S4, SearchSpace
from mae_nas.supernet import ReferenceCell, Supernet, SupernetSize


def build(
    space: SearchSpace,
    side: int = 8,
    stages: int = 3,
    size: SupernetSize | None = None,
) -> tuple[Supernet, DARTS]:
    size = size or SupernetSize(width=4, depth=3)
    net = Supernet(space, 3, stages, size.plan(space, side), ReferenceCell)
    return net.double(), DARTS(space).double()


def maximum(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


# Published sizes ----------------------------------------------------------------------------------

HEAD = 256 * 10 + 10


SIZES = {
    "S0": (S0(), 1_930_618 - HEAD, 300.25),
    "S1": (S1(), 405_146 - HEAD, 68.4),  # the parameters as printed by RobustDARTS
    "S2": (S2(), 665_466 - HEAD, 100.9),
    "S3": (S3(), 665_466 - HEAD, 100.9),
    "S4": (S4(), 624_506 - HEAD, 96.7),
}


def on_meta(space: SearchSpace) -> tuple[Supernet, DARTS, Tensor]:
    with torch.device("meta"):
        plan = SupernetSize(width=16, depth=8).plan(space, 32)
        net = Supernet(space, 3, 3, plan, ReferenceCell)
        return net, DARTS(space), torch.empty(1, 3, 32, 32)


@pytest.mark.parametrize("name", SIZES)
def test_supernet_has_the_published_parameters(name: str) -> None:
    space, parameters, _ = SIZES[name]
    assert count_parameters(on_meta(space)[0]) == parameters


@pytest.mark.parametrize("name", ["S0", "S1", pytest.param("S4", marks=pytest.mark.slow)])
def test_supernet_has_the_published_multiply_adds(name: str) -> None:
    space, _, multiply_adds = SIZES[name]
    net, relaxation, image = on_meta(space)
    counted = count_multiply_adds(lambda: net(image, relaxation.mixture()))
    assert counted / 1e6 == pytest.approx(multiply_adds, abs=0.05 if name != "S0" else 0.005)


# Shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "stem"), [(16, "auto"), (64, "auto"), (160, "auto"), (32, "small")]
)
@pytest.mark.parametrize("channels", [1, 4])
def test_features_have_the_planned_channels_and_strides(
    side: int, stem: Literal["auto", "small"], channels: int
) -> None:
    plan = SupernetSize(width=2, depth=4, stem=stem).plan(S2(), side)
    net = Supernet(S2(), channels, 3, plan, ReferenceCell)
    features = net(torch.randn(2, channels, side, side), DARTS(S2()).mixture())
    for feature, info in zip(features, plan.features, strict=True):
        assert feature.shape == (2, info.channels, side // info.stride, side // info.stride)


def test_size_refuses_a_side_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match=r"side 200 is not a multiple of 32.*192, 224"):
        SupernetSize().plan(S0(), 200)
    with pytest.raises(ValueError, match="depth 2"):
        SupernetSize(depth=2).plan(S0(), 32)


@pytest.mark.parametrize("stages", [1, 2])
def test_fewer_stages_build_fewer_cells_and_give_the_same_features(stages: int) -> None:
    whole, relaxation = build(S2(), size=SupernetSize(width=4, depth=6))
    part, _ = build(S2(), stages=stages, size=SupernetSize(width=4, depth=6))
    assert len(part.backbone.cells) == 2 * stages
    values = whole.state_dict()
    part.load_state_dict({name: values[name] for name in part.state_dict()})
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    features = part(image, relaxation.mixture())
    assert len(features) == stages
    expected = whole(image, relaxation.mixture())
    assert all(map(torch.equal, features, expected[:stages]))
    total = torch.stack([feature.sum() for feature in features]).sum()
    unused = torch.autograd.grad(total, list(part.parameters()), allow_unused=True)
    assert all(gradient is not None for gradient in unused)


# Sparse masking -----------------------------------------------------------------------------------


# Sharp test 7.
@pytest.mark.parametrize("space", [S0(), S4()], ids=["S0", "S4"])
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_every_cell_is_exactly_zero_at_hidden_sites(space: SearchSpace, patch: int) -> None:
    net, relaxation = build(space, side=16)
    states: list[tuple[Tensor, int]] = []

    def keep(cell: nn.Module, _inputs: object, state: object) -> None:
        assert isinstance(cell, ReferenceCell)
        assert isinstance(state, CellState)
        states.append((state.dense(), cell.spec.stride_out))

    for cell in net.backbone.cells:
        assert isinstance(cell, ReferenceCell)
        cell.register_forward_hook(keep)
    hidden = torch.rand(3, 16 // patch, 16 // patch) < 0.75
    hidden[:, 0, 0] = False
    hidden[:, -1, -1] = True
    visible = VisibleMap(hidden, patch)
    image = torch.randn(3, 3, 16, 16, dtype=torch.float64).where(visible.at(1), 0.0)
    net(image, relaxation.mixture(), visible)
    assert len(states) == 3
    for state, stride in states:
        at = visible.at(stride).expand_as(state)
        assert (state[~at] == 0).all()
        assert (state[at] != 0).all()


# Sharp test 7.
def test_sparse_supernet_with_everything_visible_is_the_dense_one() -> None:
    sparse, relaxation = build(S0())
    dense, _ = build(S0())
    dense.load_state_dict(sparse.state_dict())
    image = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    visible = VisibleMap(torch.zeros(3, 2, 2, dtype=torch.bool), 4)
    for _ in range(2):
        pairs = zip(
            sparse(image, relaxation.mixture(), visible),
            dense(image, relaxation.mixture()),
            strict=True,
        )
        assert all(maximum(a, b) < 1e-10 for a, b in pairs)
    values = sparse.state_dict()
    for name, value in dense.state_dict().items():
        assert maximum(values[name], value) < 1e-10, name
    sparse.eval()
    dense.eval()
    features = sparse(image, relaxation.mixture(), visible)
    assert all(
        map(lambda a, b: maximum(a, b) < 1e-10, features, dense(image, relaxation.mixture()))
    )


def test_noise_is_all_that_differs_between_two_runs_of_s4() -> None:
    net, relaxation = build(S4())
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.manual_seed(1)
    first = net(image, relaxation.mixture())
    assert not torch.equal(net(image, relaxation.mixture())[0], first[0])
    torch.manual_seed(1)
    assert all(map(torch.equal, net(image, relaxation.mixture()), first))


def test_an_edge_is_linear_in_its_mixture() -> None:
    net, relaxation = build(S0(), stages=1)
    cell = net.backbone.cells[0]
    assert isinstance(cell, ReferenceCell)
    edge = cell.edges[0]
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    ops = relaxation.mixture()["normal"].ops[0]
    mixed = edge(x, tuple(ops), None, None)
    candidates = dict(edge.get_submodule("candidates").named_children())
    assert list(candidates) == list(S0().primitives("normal")[0])
    by_hand = torch.zeros_like(x)
    for weight, (name, candidate) in zip(ops, candidates.items(), strict=True):
        if name != "none":
            by_hand += weight * candidate(x, None, None)
    assert maximum(mixed, by_hand) < 1e-12


def test_memory_is_channels_last(
    make_search: Callable[..., tuple[nn.Module, Supernet, nn.Module]],
) -> None:
    _, net, _ = make_search(space=S2())
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions)
    features = net(torch.randn(2, 3, 16, 16), DARTS(S2()).mixture())
    assert all(f.is_contiguous(memory_format=torch.channels_last) for f in features)
