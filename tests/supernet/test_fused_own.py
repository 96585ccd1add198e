"""Beside what the fused cell knows: operations, forms and precisions of a user's own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mae_nas.backbone import CELL_KINDS
from mae_nas.masking import BatchNorm
from mae_nas.relaxations import Mixture
from mae_nas.spaces import SearchSpace
from mae_nas.spaces.primitives import PRIMITIVES, DepthwiseSeparable, Primitive, SepConv
from mae_nas.supernet import FusedCell, Supernet, SupernetSize

Check = Callable[..., None]


class Own(SearchSpace):
    """An operation that nobody has fused, beside ones that are."""

    nodes = 3

    def primitives(self, kind: str) -> list[list[str]]:
        rows = [["mine", "sep_conv_5x5", "none"], ["none", "mine", "skip_connect"]]
        rows += [["avg_pool_3x3", "mine", "max_pool_3x3"]]
        rows += [["dil_conv_5x5", "skip_connect", "sep_conv_3x3"]] * (len(self.edges) - 3)
        return rows if kind == "normal" else rows[::-1]

    def operations(self) -> dict[str, Callable[[int, int], Primitive]]:
        return {**PRIMITIVES, "mine": Mine}


class Mine(Primitive):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.factor = torch.nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        del before
        y = (x * self.factor).sin()[:, :, :: self.stride, :: self.stride]
        return y if after is None else y.where(after, 0.0)


class Twins(SearchSpace):
    """Edges with two candidates of one kind, and kinds that are not as their classes make them."""

    nodes = 2

    def primitives(self, kind: str) -> list[list[str]]:
        del kind
        names = ["skip_connect", "again", "max_pool_3x3", "max_again", "sep_conv_3x3", "twin"]
        return [[*names, "affine", "eps", "biased", "pool_affine"]] * len(self.edges)

    def operations(self) -> dict[str, Callable[[int, int], Primitive]]:
        return {
            **PRIMITIVES,
            "again": PRIMITIVES["skip_connect"],
            "max_again": PRIMITIVES["max_pool_3x3"],
            "twin": PRIMITIVES["sep_conv_3x3"],
            "affine": lambda channels, stride: with_affine(SepConv(channels, 3, stride)),
            "eps": lambda channels, stride: with_eps(DepthwiseSeparable(channels, 3, stride, 2)),
            "biased": lambda channels, stride: with_bias(DepthwiseSeparable(channels, 5, stride)),
            "pool_affine": lambda channels, stride: with_affine(
                PRIMITIVES["avg_pool_3x3"](channels, stride)
            ),
        }


def with_affine(operation: Primitive) -> Primitive:
    for part in operation.modules():
        if isinstance(part, BatchNorm):
            part.affine = True
            part.weight = torch.nn.Parameter(torch.rand(part.num_features) + 0.5)
            part.bias = torch.nn.Parameter(torch.randn(part.num_features))
    return operation


def with_eps(operation: DepthwiseSeparable) -> Primitive:
    operation.norm.eps = 1.0
    return operation


def with_bias(operation: DepthwiseSeparable) -> Primitive:
    operation.pointwise.bias = torch.nn.Parameter(torch.randn(len(operation.pointwise.weight)))
    return operation


class Wide(SearchSpace):
    """Forms that the kernel does not know, beside one that it does."""

    nodes = 2

    def primitives(self, kind: str) -> list[list[str]]:
        del kind
        return [["sep_conv_7x7", "dil_conv_3x3_3", "sep_conv_3x3"]] * len(self.edges)

    def operations(self) -> dict[str, Callable[[int, int], Primitive]]:
        return {
            **PRIMITIVES,
            "sep_conv_7x7": lambda channels, stride: SepConv(channels, 7, stride),
            "dil_conv_3x3_3": lambda channels, stride: DepthwiseSeparable(channels, 3, stride, 3),
        }


@pytest.mark.parametrize("patch", [None, 4, 2])
def test_an_operation_that_nobody_has_fused_is_the_references(
    check: Check, patch: int | None
) -> None:
    check(Own(), "signed", patch=patch, backend="torch", width=6)


@pytest.mark.parametrize("patch", [None, 4])
def test_a_form_that_the_kernel_does_not_know_is_torchs(check: Check, patch: int | None) -> None:
    check(Wide(), patch=patch, depth=3, implementation="fused-cpp-torch")


@pytest.mark.parametrize("patch", [None, 4])
def test_candidates_alike_and_operations_of_another_make_are_the_references(
    check: Check, patch: int | None
) -> None:
    check(Twins(), "signed", patch=patch, depth=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_of_another_precision_and_an_operation_of_ones_own_under_autocast(
    dtype: torch.dtype,
) -> None:
    space = Own()
    plan = SupernetSize(8, 3, "cifar").plan(space, 8)
    fused = Supernet(space, 3, 3, plan, FusedCell)
    scores = {kind: torch.rand(space.shape(kind)).to(dtype).requires_grad_() for kind in CELL_KINDS}
    with torch.autocast("cpu", torch.bfloat16):
        mixtures = {kind: Mixture(value) for kind, value in scores.items()}
        features = fused(torch.randn(4, 3, 8, 8), mixtures)
        loss = torch.stack([f.float().square().mean() for f in features]).sum()
    assert fused.implementation == "fused-torch"
    gradients = torch.autograd.grad(loss, [*scores.values(), *fused.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
