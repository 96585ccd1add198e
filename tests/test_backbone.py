from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from mae_nas.backbone import (
    Backbone,
    CellState,
    FeatureInfo,
    Stem,
    StemName,
    check_side,
    plan_backbone,
    stem_for,
)
from mae_nas.masking import VisibleMap

FIRST_STRIDE = {"cifar": 1, "small": 2, "imagenet": 8}


@pytest.mark.parametrize(
    ("side", "stem"),
    [(32, "cifar"), (48, "cifar"), (49, "small"), (128, "small"), (129, "imagenet")],
)
def test_stem_follows_the_side(side: int, stem: str) -> None:
    assert stem_for(side) == stem


@pytest.mark.parametrize("stem", ["cifar", "small", "imagenet"])
@pytest.mark.parametrize("depth", [3, 4, 5, 8, 14, 20])
def test_plan_reduces_at_one_and_two_thirds_and_taps_each_stage_end(
    stem: StemName, depth: int
) -> None:
    plan = plan_backbone(6, depth, stem, {"normal": 3, "reduce": 5})
    width, stride = 6, FIRST_STRIDE[stem]
    inputs = list(Stem.outputs(stem, 6))
    for index, cell in enumerate(plan.cells):
        if index in (depth // 3, 2 * depth // 3):
            width, stride = 2 * width, 2 * stride
            assert cell.kind == "reduce"
            assert (cell.stride_in, cell.stride_out) == (stride // 2, stride)
        else:
            assert cell.kind == "normal"
            assert (cell.stride_in, cell.stride_out) == (stride, stride)
        assert cell.width == width
        assert list(cell.inputs) == inputs[-2:]
        concatenated = 5 if cell.is_reduction else 3
        inputs.append(FeatureInfo(concatenated * width, stride))
    assert plan.taps == (depth // 3 - 1, 2 * depth // 3 - 1, depth - 1)
    assert plan.features == tuple(inputs[2 + tap] for tap in plan.taps)
    for stages in (1, 2, 3):
        assert plan.up_to(stages) == plan.cells[: plan.taps[stages - 1] + 1]


@pytest.mark.parametrize(
    ("stem", "strides"), [("cifar", (1, 2, 4)), ("small", (2, 4, 8)), ("imagenet", (8, 16, 32))]
)
def test_plan_of_the_paper(stem: StemName, strides: tuple[int, int, int]) -> None:
    plan = plan_backbone(16, 8, stem)
    assert plan.taps == (1, 4, 7)
    assert [f.channels for f in plan.features] == [64, 128, 256]
    assert tuple(f.stride for f in plan.features) == strides


def test_plan_refuses_what_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="depth 2: at least 3"):
        plan_backbone(16, 2, "cifar")
    for width in (15, 1, 0, -2):
        with pytest.raises(ValueError, match=f"width {width}: must be even"):
            plan_backbone(width, 8, "cifar")


def test_check_side_names_the_nearest_that_fit() -> None:
    check_side(96, 32)
    with pytest.raises(ValueError, match=r"side 100 .* 32.*: 96, 128$"):
        check_side(100, 32)
    with pytest.raises(ValueError, match=r": 4$"):
        check_side(2, 4)


@pytest.mark.parametrize("stem", ["cifar", "small", "imagenet"])
@pytest.mark.parametrize("channels", [1, 5])
def test_stem_outputs_are_what_it_announces(stem: StemName, channels: int) -> None:
    states = Stem(stem, channels, 4)(torch.randn(2, channels, 16, 32), None)
    for state, info in zip(states, Stem.outputs(stem, 4), strict=True):
        assert state.shape == (2, info.channels, 16 // info.stride, 32 // info.stride)


# Sharp test 6: convolutions with overlapping windows, and strides that cut patches of 2 in part.
@pytest.mark.parametrize("stem", ["cifar", "small", "imagenet"])
@pytest.mark.parametrize("patch", [2, 4])
def test_sparse_stem_equals_loops_over_visible_sites(
    stem: StemName,
    patch: int,
    conv_by_loops: Callable[..., Tensor],
    norm_by_gathering: Callable[..., Tensor],
) -> None:
    net = Stem(stem, 3, 2).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    visible = VisibleMap(torch.rand(2, 16 // patch, 16 // patch) < 0.6, patch)
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64).where(visible.at(1), 0.0)
    states = net(image, visible)

    def layer(x: Tensor, index: int, stride: int, at: int) -> Tensor:
        norm = net.get_submodule(f"norm{index}")
        twin = nn.BatchNorm1d(len(norm.get_parameter("bias")), dtype=torch.float64)
        twin.load_state_dict(dict(norm.named_parameters()), strict=False)
        weight = net.get_parameter(f"conv{index}.weight")
        y = conv_by_loops(x, weight, visible.at(at), stride)
        return norm_by_gathering(y, visible.at(at * stride), twin)

    if stem == "imagenet":
        first = layer(image, 0, 2, 1).relu()
        second = layer(first, 1, 2, 2)
        expected = [second, layer(second.relu(), 2, 2, 4)]
    else:
        expected = [layer(image, 0, FIRST_STRIDE[stem], 1)] * 2
    for state, reference in zip(states, expected, strict=True):
        assert (state - reference).abs().max() < 1e-12


@dataclass
class Spelled(CellState):
    """A state that remembers how it was made."""

    text: str

    def dense(self) -> Tensor:
        return torch.tensor(len(self.text))


def test_backbone_feeds_each_cell_the_two_before_and_taps_the_stage_ends() -> None:
    plan = plan_backbone(2, 6, "cifar")
    net = Backbone(plan, 1, 2, lambda _spec: nn.Identity())
    assert len(net.cells) == 4
    made: list[str] = []

    def step(_cell: nn.Module, before_last: CellState, last: CellState) -> CellState:
        assert isinstance(before_last, Spelled)
        assert isinstance(last, Spelled)
        made.append(f"({before_last.text}{last.text})")
        return Spelled(made[-1])

    tapped = net.run([Spelled("a"), Spelled("b")], step)
    assert made[:3] == ["(ab)", "(b(ab))", "((ab)(b(ab)))"]
    assert [int(t) for t in tapped] == [len(made[1]), len(made[3])]
