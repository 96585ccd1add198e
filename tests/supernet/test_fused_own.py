"""Beside what the fused cell knows: operations, forms and precisions of a user's own."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from mae_nas.backbone import CELL_KINDS
from mae_nas.masking import BatchNorm, VisibleMap
from mae_nas.relaxations import Mixture
from mae_nas.spaces import S0, SearchSpace
from mae_nas.spaces.primitives import (
    PRIMITIVES,
    DepthwiseSeparable,
    Pool,
    Primitive,
    SepConv,
)
from mae_nas.supernet import FusedCell, ReferenceCell, Supernet, SupernetSize
from mae_nas.supernet.depthwise import cpp
from mae_nas.supernet.layers import is_plain

Check = Callable[..., None]
Both = Callable[..., tuple[Supernet, Supernet]]
Passes = Callable[..., tuple[list[Tensor], list[Tensor]]]
BY_DEFAULT = "fused-torch" if cpp.library() is None else "fused-cpp"


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


class Odd(SearchSpace):
    """Separable convolutions of the usual classes, of other forms than those classes make."""

    nodes = 2

    def primitives(self, kind: str) -> list[list[str]]:
        del kind
        return [[*ODD, "sep_conv_3x3"]] * len(self.edges)

    def operations(self) -> dict[str, Callable[[int, int], Primitive]]:
        return {**PRIMITIVES, **ODD}


def strided_last(channels: int, stride: int) -> Primitive:
    operation = SepConv(channels, 3, 1)
    operation.second = DepthwiseSeparable(channels, 3, stride)
    return operation


def strided_point(channels: int, stride: int) -> Primitive:
    operation = DepthwiseSeparable(channels, 3, 1)
    operation.pointwise = torch.nn.Conv2d(channels, channels, 1, stride, bias=False)
    return operation


def expanding(channels: int, stride: int) -> Primitive:
    operation = SepConv(channels, 3, stride)
    operation.first.pointwise = torch.nn.Conv2d(channels, 2 * channels, 1, bias=False)
    operation.first.norm = BatchNorm(2 * channels, affine=False)
    operation.second.depthwise = torch.nn.Conv2d(
        2 * channels, 2 * channels, 3, padding=1, groups=2 * channels, bias=False
    )
    operation.second.pointwise = torch.nn.Conv2d(2 * channels, channels, 1, bias=False)
    return operation


def nested(channels: int, stride: int) -> Primitive:
    operation = DepthwiseSeparable(channels, 3, stride)
    operation.pointwise = torch.nn.Sequential(operation.pointwise)  # type: ignore[assignment]
    return operation


class NoReLU(DepthwiseSeparable):
    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        del before
        return self.norm(self.pointwise(self.depthwise(x)), after)


def without_relu(channels: int, stride: int) -> Primitive:
    operation = SepConv(channels, 3, stride)
    operation.second = NoReLU(channels, 3, 1)
    return operation


def own_forward(channels: int, stride: int) -> Primitive:
    operation = DepthwiseSeparable(channels, 3, stride)
    forward = operation.forward
    operation.forward = lambda *given: -forward(*given)  # type: ignore[method-assign]
    return operation


def hooked(channels: int, stride: int) -> Primitive:
    operation = PRIMITIVES["max_pool_3x3"](channels, stride)
    operation.register_forward_hook(lambda _module, _given, y: 2 * y)
    return operation


def normed(channels: int, stride: int) -> Primitive:
    operation = DepthwiseSeparable(channels, 3, stride)
    torch.nn.utils.spectral_norm(operation.pointwise)
    operation.pointwise.eval()  # or a pass would move its estimate
    return operation


ODD: dict[str, Callable[[int, int], Primitive]] = {
    "strided_last": strided_last,
    "strided_point": strided_point,
    "expanding": expanding,
    "nested": nested,
    "without_relu": without_relu,
    "own_forward": own_forward,
    "hooked": hooked,
    "normed": normed,
}


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


def test_layers_of_another_form_are_the_references(check: Check) -> None:
    check(Odd(), "signed", depth=3)  # dense: a stride in the second layer fits no mask


def test_norms_at_rest_in_a_cell_that_trains_are_the_references(both: Both, passes: Passes) -> None:
    results = []
    reference, fused = both(S0(), width=8)
    for net in (reference, fused):
        for part in net.modules():
            if isinstance(part, BatchNorm):
                part.eval()
        torch.manual_seed(3)
        scores = {kind: torch.randn(S0().shape(kind)).double() for kind in CELL_KINDS}
        image = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        results.append(passes(net, scores, "softmax", image, None))
    assert fused.implementation == BY_DEFAULT
    for ours, theirs in zip(
        *(features + gradients for features, gradients in results), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11)


def test_a_mixture_of_another_space_is_refused(both: Both) -> None:
    _, fused = both()
    mixture = Mixture(torch.randn(S0().shape("normal")[0], 9).double())
    with pytest.raises(ValueError, match=r"mixture: \(14, 9\) weights, the cell has \(14, 8\)"):
        fused(torch.randn(2, 3, 8, 8).double(), dict.fromkeys(CELL_KINDS, mixture))


def test_one_name_twice_on_an_edge_is_a_mistake() -> None:
    class Same(SearchSpace):
        def primitives(self, kind: str) -> list[list[str]]:
            del kind
            return [["sep_conv_3x3", "sep_conv_3x3", "none"]] * len(self.edges)

    lines = list(Same().problems())
    assert len(lines) == 2
    assert "twice on an edge: sep_conv_3x3" in lines[0]
    plan = SupernetSize(8, 3, "cifar").plan(Same(), 16)
    with pytest.raises(ValueError, match="twice on an edge: sep_conv_3x3"):
        Supernet(Same(), 3, 3, plan, FusedCell)


class OwnPool(Pool):
    """Of a class that knows nothing of its parent's parts."""

    def __init__(self) -> None:
        Primitive.__init__(self)

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        del before, after
        return x.exp()


def test_a_class_with_nothing_of_its_parents_is_another_operation() -> None:
    assert not is_plain(OwnPool(), 8, 1)
    assert not is_plain(Pool(lambda x, *_: x, 8, 1), 8, 1)
    assert is_plain(PRIMITIVES["avg_pool_3x3"](8, 2), 8, 2)
    assert not is_plain(PRIMITIVES["avg_pool_3x3"](8, 2), 8, 1)


def test_what_is_not_as_its_class_makes_it_is_another_operation() -> None:
    def made() -> DepthwiseSeparable:
        return DepthwiseSeparable(8, 3, 1)

    assert is_plain(made(), 8, 1)
    spoilt = [made() for _ in range(5)]
    spoilt[0].pointwise.bias = torch.nn.Parameter(torch.ones(8))
    spoilt[1].norm.register_buffer("more", torch.ones(8))
    spoilt[2].depthwise._conv_forward = lambda *_: torch.ones(1)  # type: ignore[method-assign]
    spoilt[3].register_full_backward_hook(lambda *_: None)
    spoilt[4].pointwise.register_full_backward_pre_hook(lambda *_: None)
    assert not any(is_plain(operation, 8, 1) for operation in spoilt)


def test_a_candidate_that_is_no_primitive_is_refused() -> None:
    class Linear(SearchSpace):
        def primitives(self, kind: str) -> list[list[str]]:
            del kind
            return [["linear", "skip_connect"]] * len(self.edges)

        def operations(self) -> dict[str, Callable[[int, int], Primitive]]:
            return {**PRIMITIVES, "linear": lambda *_: NotOne()}  # type: ignore[dict-item]

    plan = SupernetSize(8, 3, "cifar").plan(Twins(), 16)
    with pytest.raises(TypeError, match="linear: is a NotOne, not a Primitive"):
        Supernet(Linear(), 3, 3, plan, FusedCell)


class NotOne(torch.nn.Module):
    is_zero = is_skip = is_random = False


def test_half_precision_throughout_runs(scores_of: Callable[..., dict[str, Tensor]]) -> None:
    plan = SupernetSize(8, 3, "cifar").plan(S0(), 16)
    net = Supernet(S0(), 3, 3, plan, FusedCell).bfloat16()
    mixtures = {k: Mixture(v.bfloat16()) for k, v in scores_of(S0()).items()}
    features = net(torch.randn(2, 3, 16, 16).bfloat16(), mixtures)
    torch.stack([f.float().square().mean() for f in features]).sum().backward()
    assert net.implementation == "fused-torch"
    assert all(f.isfinite().all() for f in features)
    found = [p.grad for p in net.parameters() if p.grad is not None]
    assert len(found) > 200
    assert all(gradient.isfinite().all() for gradient in found)


class Far(SearchSpace):
    """Inputs of pools and separable convolutions that lie far from zero."""

    nodes = 2

    def primitives(self, kind: str) -> list[list[str]]:
        del kind
        return [["far", "max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3", "dil_conv_5x5"]] * 5

    def operations(self) -> dict[str, Callable[[int, int], Primitive]]:
        return {**PRIMITIVES, "far": Offset}


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in tensors])


class Offset(Primitive):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        del channels
        self.stride = stride

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        del before
        y = x[:, :, :: self.stride, :: self.stride] + 300.0
        return y if after is None else y.where(after, 0.0)


@pytest.mark.parametrize("patch", [None, 2, 4])
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_digits_are_kept_far_from_zero(
    passes: Passes,
    visible_of: Callable[..., VisibleMap | None],
    patch: int | None,
    backend: str,
) -> None:
    if backend == "cpp" and cpp.library() is None:
        pytest.skip("no C++ compiler")
    space, image, visible = Far(), torch.randn(4, 3, 16, 16), visible_of(patch, 16, 4)
    plan = SupernetSize(8, 3, "cifar").plan(space, 16)
    exact = Supernet(space, 3, 3, plan, ReferenceCell)
    values = {name: value.clone() for name, value in exact.state_dict().items()}
    scores = {kind: torch.randn(space.shape(kind)) for kind in CELL_KINDS}
    wide = {kind: value.double() for kind, value in scores.items()}
    wanted, slopes = passes(exact.double(), wide, "softmax", image.double(), visible)
    errors = []
    cells = {f"fused-{backend}": partial(FusedCell, compiles=backend == "cpp")}
    for name, cell in {**cells, "reference": ReferenceCell}.items():
        net = Supernet(space, 3, 3, plan, cell)
        net.load_state_dict(values)
        found, ours = passes(net, scores, "softmax", image, visible)
        assert net.implementation == name
        pairs = [*zip(found, wanted, strict=True), (flat(ours[:2]), flat(slopes[:2]))]
        pairs.append((flat(ours[2:]), flat(slopes[2:])))
        of_both = (net.state_dict(), exact.state_dict())
        means, known = (flat([v for k, v in x.items() if "running_mean" in k]) for x in of_both)
        pairs.append((means, known))
        errors.append([((a - b).norm() / b.norm()).item() for a, b in pairs])
    for ours, theirs in zip(*errors, strict=True):
        assert 0 < ours < 5 * theirs


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
