from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from mae_nas.masking import VisibleMap
from mae_nas.spaces.primitives import PRIMITIVES, FactorizedReduce, Primitive, ReLUConvBN, Zero

CASES = [
    (name, stride, patch, pixels)
    for name, stride, (patch, pixels) in product(
        ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5", "skip_connect"),
        (1, 2),
        ((4, 1), (2, 2), (2, 4)),  # the last: patches of 2 at a stride of 4, visible in part
    )
]


def case(patch: int, pixels: int, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """A signed input that is 0 at hidden sites, and the visible sites before and after."""
    side = 8 * pixels
    visible = VisibleMap(torch.rand(2, side // patch, side // patch) < 0.65, patch)
    before, after = visible.at(pixels), visible.at(pixels * stride)
    assert not before.all()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64).where(before, 0.0)
    return x, before, after


# Sharp test 6: kernels 3 and 5, dilation 1 and 2, stride 1 and 2, depthwise and pointwise.
@pytest.mark.parametrize(("name", "stride", "patch", "pixels"), CASES)
def test_sparse_convolutions_equal_loops_over_visible_sites(
    name: str,
    stride: int,
    patch: int,
    pixels: int,
    conv_by_loops: Callable[..., Tensor],
    norm_by_gathering: Callable[..., Tensor],
) -> None:
    operation = PRIMITIVES[name](4, stride).double()
    x, before, after = case(patch, pixels, stride)
    w = dict(operation.named_parameters())

    def separable(x: Tensor, at: Tensor, prefix: str, stride: int, dilation: int) -> Tensor:
        y = conv_by_loops(x.relu(), w[f"{prefix}depthwise.weight"], at, stride, dilation)
        y = conv_by_loops(y, w[f"{prefix}pointwise.weight"], after)
        return norm_by_gathering(y, after)

    if name.startswith("sep"):
        inner = separable(x, before, "first.", stride, 1)
        expected = separable(inner, after, "second.", 1, 1)
    elif name.startswith("dil"):
        expected = separable(x, before, "", stride, 2)
    elif stride == 1:
        expected = x
    else:
        even = conv_by_loops(x.relu(), w["even.weight"], before, 2)
        odd = conv_by_loops(x.relu()[:, :, 1:, 1:], w["odd.weight"], before[:, :, 1:, 1:], 2)
        expected = norm_by_gathering(torch.cat([even, odd], 1), after)
    y = operation(x, before, after)
    assert (y - expected).abs().max() < 1e-12
    assert not y.masked_fill(after, 0.0).any()


# Sharp test 6: kernel 1.
def test_sparse_preprocessing_equals_loops(
    conv_by_loops: Callable[..., Tensor], norm_by_gathering: Callable[..., Tensor]
) -> None:
    x, before, after = case(2, 2, 1)
    operation = ReLUConvBN(4, 6).double()
    expected = norm_by_gathering(conv_by_loops(x.relu(), operation.conv.weight, before), after)
    assert (operation(x, before, after) - expected).abs().max() < 1e-12


def pair_by_loops(
    conv: Callable[..., Tensor],
    w: dict[str, Tensor],
    x: Tensor,
    stride: int,
    before: Tensor | None = None,
) -> Tensor:
    """Convolutions 1×7 and 7×1 as 7×7 ones of which most taps are 0."""
    row, column = (torch.zeros(len(x[0]), len(x[0]), 7, 7, dtype=x.dtype) for _ in range(2))
    row[:, :, 3] = w["row.weight"][:, :, 0]
    column[:, :, :, 3] = w["column.weight"][..., 0]
    y = conv(x.relu(), row, before)[..., ::stride]
    seen = None
    if before is not None:
        seen = torch.stack([before[..., start::stride] for start in range(stride)]).any(0)
    return conv(y, column, seen)[:, :, ::stride]


# A kernel that is not square: sites between the two convolutions are those of the first.
@pytest.mark.parametrize(
    ("stride", "patch", "pixels"), [(1, 2, 1), (2, 4, 1), (2, 2, 1), (2, 2, 2)]
)
def test_the_sparse_pair_equals_loops_over_visible_sites(
    stride: int,
    patch: int,
    pixels: int,
    conv_by_loops: Callable[..., Tensor],
    norm_by_gathering: Callable[..., Tensor],
) -> None:
    operation = PRIMITIVES["conv_7x1_1x7"](4, stride).double()
    x, before, after = case(patch, pixels, stride)
    pair = pair_by_loops(conv_by_loops, dict(operation.named_parameters()), x, stride, before)
    y = operation(x, before, after)
    assert (y - norm_by_gathering(pair, after)).abs().max() < 1e-12
    assert not y.masked_fill(after, 0.0).any()


def reference_norm(x: Tensor) -> Tensor:
    return nn.functional.batch_norm(x, None, None, training=True)


@pytest.mark.parametrize("name", sorted(set(PRIMITIVES) - {"none", "noise"}))
@pytest.mark.parametrize("stride", [1, 2])
def test_dense_operations_equal_loops(
    name: str, stride: int, conv_by_loops: Callable[..., Tensor]
) -> None:
    operation = PRIMITIVES[name](3 if stride == 1 else 4, stride).double()
    x = torch.randn(2, 3 if stride == 1 else 4, 6, 10, dtype=torch.float64) - 0.5
    w = dict(operation.named_parameters())
    expected = x
    if name.endswith("pool_3x3"):
        pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        expected = reference_norm((pool if name[0] == "a" else nn.MaxPool2d(3, stride, 1))(x))
    elif name == "skip_connect" and stride == 2:
        even = torch.einsum("oc,bchw->bohw", w["even.weight"][..., 0, 0], x.relu()[:, :, ::2, ::2])
        odd = torch.einsum("oc,bchw->bohw", w["odd.weight"][..., 0, 0], x.relu()[:, :, 1::2, 1::2])
        expected = reference_norm(torch.cat([even, odd], 1))
    elif name == "conv_7x1_1x7":
        expected = reference_norm(pair_by_loops(conv_by_loops, w, x, stride))
    elif "conv" in name:
        kernel, dilation = int(name[-1]), 2 if name[0] == "d" else 1
        for i, prefix in enumerate(("first.", "second.") if name[0] == "s" else ("",)):
            depthwise = w[f"{prefix}depthwise.weight"]
            assert depthwise.shape[-1] == kernel
            y = conv_by_loops(expected.relu(), depthwise, None, 1 if i else stride, dilation)
            expected = reference_norm(conv_by_loops(y, w[f"{prefix}pointwise.weight"]))
    assert (operation(x, None, None) - expected).abs().max() < 1e-12


def gradient_reach(operation: Primitive, side: int) -> set[tuple[int, int]]:
    """Input sites that the middle output site depends on, by autograd, without the norms."""
    for module in operation.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    x = torch.rand(1, 2, side, side, dtype=torch.float64) + 1  # positive: past the first ReLU
    for parameter in operation.parameters():
        nn.init.constant_(parameter, 1.0)
    x.requires_grad_()
    y = operation(x, None, None)
    y[0, :, y.shape[2] // 2, y.shape[3] // 2].sum().backward()
    assert x.grad is not None
    middle = side // 2
    return {(r - middle, c - middle) for r, c in x.grad[0].any(0).nonzero().tolist()}


@pytest.mark.parametrize(
    ("name", "offsets"),
    [
        ("skip_connect", (0,)),
        ("avg_pool_3x3", (-1, 0, 1)),
        ("sep_conv_3x3", (-2, -1, 0, 1, 2)),
        ("sep_conv_5x5", tuple(range(-4, 5))),
        ("dil_conv_3x3", (-2, 0, 2)),
        ("dil_conv_5x5", (-4, -2, 0, 2, 4)),
    ],
)
def test_receptive_fields_are_those_of_the_names(name: str, offsets: tuple[int, ...]) -> None:
    reach = gradient_reach(PRIMITIVES[name](2, 1).double(), 17)
    assert reach == set(product(offsets, offsets))


def test_noise_ignores_its_input_and_is_standard_normal() -> None:
    operation = PRIMITIVES["noise"](4, 2)
    x = torch.full((8, 4, 32, 32), torch.nan, requires_grad=True)
    torch.manual_seed(3)
    y = operation(x, None, None)
    assert y.shape == (8, 4, 16, 16)
    assert not y.requires_grad
    assert abs(y.mean()) < 4 / y.numel() ** 0.5
    assert abs(y.var() - 1) < 4 * (2 / y.numel()) ** 0.5
    assert not torch.equal(operation(x, None, None), y)
    torch.manual_seed(3)
    assert torch.equal(operation(x, None, None), y)
    visible = torch.rand(8, 1, 16, 16) < 0.5
    torch.manual_seed(3)
    assert torch.equal(operation(x, torch.ones(8, 1, 32, 32), visible), y.where(visible, 0.0))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_noise_is_the_same_in_half_precision(half: torch.dtype) -> None:
    drawn = []
    for dtype in (torch.float32, half):
        torch.manual_seed(3)
        drawn.append(PRIMITIVES["noise"](4, 1)(torch.zeros(8, 4, 32, 32, dtype=dtype), None, None))
    assert drawn[1].dtype == half
    assert torch.equal(drawn[1], drawn[0].to(half))


def test_zero_is_never_run() -> None:
    with pytest.raises(AssertionError, match="never run"):
        Zero()(torch.zeros(1, 1, 2, 2), None, None)


@pytest.mark.parametrize("name", PRIMITIVES)
@pytest.mark.parametrize("stride", [1, 2])
def test_flags_say_what_an_operation_is(name: str, stride: int) -> None:
    operation = PRIMITIVES[name](2, stride)
    assert operation.is_zero == (name == "none")
    assert operation.is_skip == (name == "skip_connect")
    assert operation.is_random == (name == "noise")


def test_no_operation_has_affine_norms_or_biases() -> None:
    for name, make in PRIMITIVES.items():
        for stride in (1, 2):
            names = [n for n, _ in make(4, stride).named_parameters()]
            assert all(n.endswith("weight") and "norm" not in n for n in names), name
    assert [n for n, _ in FactorizedReduce(3, 4).named_parameters()] == [
        "even.weight",
        "odd.weight",
    ]
