"""The fused cell against the reference: same outputs, gradients and running statistics."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from mae_nas.masking import Masking, VisibleMap
from mae_nas.relaxations import DARTS, Mixture
from mae_nas.runs.measure import count_multiply_adds
from mae_nas.spaces import S0, S1, S2, S3, S4, SearchSpace
from mae_nas.spaces.primitives import PRIMITIVES, DepthwiseSeparable, Primitive, SepConv, Zero
from mae_nas.supernet import FusedCell, ReferenceCell, Supernet, SupernetSize, sites
from mae_nas.supernet.depthwise import cpp, plain
from mae_nas.supernet.separable import Setting, add_separable
from mae_nas.supernet.sites import Sites

SPACES: dict[str, Callable[[], SearchSpace]] = {"s0": S0, "s1": S1, "s2": S2, "s3": S3, "s4": S4}
SIDES = {"cifar": 16, "small": 32, "imagenet": 64}
MIXTURES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda scores: scores.softmax(-1),
    "one-hot": lambda scores: torch.eye(scores.shape[-1], dtype=scores.dtype)[scores.argmax(-1)],
    "sigmoid": torch.sigmoid,
    "signed": lambda scores: scores,
}


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


def build(
    space: SearchSpace, stem: str, depth: int, width: int, **arguments: bool
) -> tuple[Supernet, Supernet]:
    """A reference and a fused supernet with the same weights, in float64."""
    plan = SupernetSize(width, depth, stem).plan(space, SIDES[stem])  # type: ignore[arg-type]
    reference = Supernet(space, 3, 3, plan, ReferenceCell).double()
    fused = Supernet(space, 3, 3, plan, partial(FusedCell, **arguments)).double()
    fused.load_state_dict(reference.state_dict())
    return reference, fused


def visible_of(patch: int | None, side: int, batch: int = 3) -> VisibleMap | None:
    if patch is None:
        return None
    masking = Masking(0.5, patch, "sparse")
    return masking.visible(masking.sample(5, torch.arange(batch), side))


def run(
    net: Supernet, scores: dict[str, Tensor], mixture: str, image: Tensor, visible: object
) -> tuple[list[Tensor], list[Tensor]]:
    """Features of a second pass, and gradients of all scores, weights and the image."""
    scores = {kind: value.clone().requires_grad_() for kind, value in scores.items()}
    image = image.clone().requires_grad_()
    mixtures = {kind: Mixture(MIXTURES[mixture](value)) for kind, value in scores.items()}
    for _ in range(2):  # running statistics move twice
        torch.manual_seed(1)
        features = net(image, mixtures, visible)
    torch.manual_seed(2)
    loss = torch.stack([(f * torch.randn_like(f)).mean() for f in features]).sum()
    inputs = [*scores.values(), *net.parameters(), image]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    return list(features), list(gradients)


@pytest.mark.parametrize("compiles", [True, False])
def test_gradients_of_one_image_may_lie_channels_first(compiles: bool) -> None:
    reference, fused = build(S0(), "cifar", 3, 8, compiles=compiles)
    image = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    mixtures, gradients = DARTS(S0()).double().mixture(), []
    for net in (reference, fused):
        features = net(image, mixtures)
        loss = torch.stack([(f.flatten(1) ** 2).sum() for f in features]).sum()  # channels first
        gradients.append(torch.autograd.grad(loss, list(net.parameters()), retain_graph=True))
    for ours, theirs in zip(*gradients, strict=True):
        assert ours is theirs is None or (ours - theirs).abs().max() < 1e-9 * (
            1 + theirs.abs().max()
        )


def check(  # noqa: PLR0913 - what is combined
    space: SearchSpace,
    mixture: str = "softmax",
    stem: str = "cifar",
    patch: int | None = None,
    backend: str = "cpp",
    depth: int = 4,
    width: int = 8,
    is_training: bool = True,
    recomputes: bool = False,
) -> None:
    compiles = backend == "cpp"
    reference, fused = build(space, stem, depth, width, compiles=compiles, recomputes=recomputes)
    if not is_training:
        for parameter in [*reference.buffers(), *fused.buffers()]:
            if parameter.is_floating_point():
                torch.manual_seed(parameter.numel())
                parameter.copy_(torch.rand_like(parameter) + 0.5)
        reference.eval()
        fused.eval()
    side = SIDES[stem]
    scores = {
        kind: torch.randn(space.shape(kind), dtype=torch.float64) for kind in ("normal", "reduce")
    }
    image = torch.randn(3, 3, side, side, dtype=torch.float64)
    visible = visible_of(patch, side)
    expected, gradients = run(reference, scores, mixture, image, visible)
    features, ours = run(fused, scores, mixture, image, visible)
    assert fused.implementation == f"fused-{backend}"
    assert reference.implementation == "reference"
    for one, other in zip(features, expected, strict=True):
        assert (one - other).abs().max() < 1e-10
    names = [*scores, *(name for name, _ in reference.named_parameters()), "image"]
    for name, one, other in zip(names, ours, gradients, strict=True):
        assert (one - other).abs().max() < 1e-10, name
    assert max(gradient.abs().max() for gradient in gradients) > 1e-4
    values = fused.state_dict()
    for name, value in reference.state_dict().items():
        assert (values[name] - value).abs().max() < 1e-10, name


PAIRWISE = [
    ("s0", "softmax", "cifar", None, "cpp"),
    ("s0", "signed", "cifar", 4, "torch"),
    ("s0", "sigmoid", "small", 8, "cpp"),
    ("s0", "one-hot", "cifar", 2, "cpp"),
    ("s1", "softmax", "imagenet", 16, "torch"),
    ("s1", "one-hot", "small", None, "torch"),
    ("s1", "sigmoid", "cifar", 4, "cpp"),
    ("s1", "signed", "cifar", 8, "cpp"),
    ("s2", "one-hot", "imagenet", 16, "cpp"),
    ("s2", "sigmoid", "cifar", None, "torch"),
    ("s2", "softmax", "small", 4, "cpp"),
    ("s2", "signed", "cifar", 2, "torch"),
    ("s3", "signed", "imagenet", None, "cpp"),
    ("s3", "softmax", "cifar", 8, "torch"),
    ("s3", "sigmoid", "small", 16, "torch"),
    ("s3", "one-hot", "cifar", 4, "cpp"),
    ("s4", "signed", "small", 8, "torch"),
    ("s4", "softmax", "cifar", 2, "cpp"),
    ("s4", "one-hot", "imagenet", None, "cpp"),
    ("s4", "sigmoid", "imagenet", 16, "cpp"),
]


def every() -> Iterator[tuple[str, str, str, int | None, str]]:
    patches = (None, 2, 4, 8, 16)
    for space, mixture, stem, patch, backend in product(
        SPACES, MIXTURES, SIDES, patches, ("cpp", "torch")
    ):
        # A mask of two patches or more, and patches no smaller than the stem's cells are seen as.
        if patch is None or patch * 2 <= SIDES[stem]:
            yield space, mixture, stem, patch, backend


@pytest.fixture(autouse=True)
def compiled(request: pytest.FixtureRequest) -> None:
    """Skips what needs the kernel where there is no compiler."""
    if "cpp" in request.node.name and cpp.library() is None:
        pytest.skip("no C++ compiler")


@pytest.mark.parametrize(("space", "mixture", "stem", "patch", "backend"), PAIRWISE)
def test_fused_equals_the_reference(
    space: str, mixture: str, stem: str, patch: int | None, backend: str
) -> None:
    check(SPACES[space](), mixture, stem, patch, backend)


@pytest.mark.slow
@pytest.mark.parametrize(("space", "mixture", "stem", "patch", "backend"), list(every()))
def test_fused_equals_the_reference_in_every_combination(
    space: str, mixture: str, stem: str, patch: int | None, backend: str
) -> None:
    check(SPACES[space](), mixture, stem, patch, backend, depth=3)


@pytest.mark.parametrize("patch", [None, 4])
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_running_statistics_serve_outside_training(patch: int | None, backend: str) -> None:
    check(S0(), patch=patch, backend=backend, depth=3, is_training=False)


@pytest.mark.parametrize("patch", [None, 2, 8])
def test_recomputing_by_cpp_or_torch_changes_nothing(patch: int | None) -> None:
    check(S0(), patch=patch, backend="cpp", depth=3, recomputes=True)
    check(S1(), patch=patch, backend="torch", depth=3, recomputes=True)


@pytest.mark.parametrize("patch", [None, 4, 2])
def test_an_operation_that_nobody_has_fused_is_the_references(patch: int | None) -> None:
    check(Own(), "signed", patch=patch, backend="torch", depth=3, width=6)


def test_an_image_that_shows_more_than_another_is_computed_densely() -> None:
    hidden = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [1, 0]], [[1, 0], [0, 1]]]).bool()
    reference, fused = build(S0(), "cifar", 3, 8)
    image = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    scores = {kind: torch.randn(S0().shape(kind)).double() for kind in ("normal", "reduce")}
    visible = VisibleMap(hidden, 8)
    expected, gradients = run(reference, scores, "softmax", image, visible)
    features, ours = run(fused, scores, "softmax", image, visible)
    for one, other in zip([*features, *ours], [*expected, *gradients], strict=True):
        assert (one - other).abs().max() < 1e-10


@pytest.mark.parametrize("width", [2, 4, 6, 8, 12, 16])
def test_widths_beside_the_kernels_vectors_are_right_too(width: int) -> None:
    compiled = cpp.library() is not None
    fast = [width * 2**stage % 4 == 0 and compiled for stage in range(3)]
    backend = ", fused-".join(sorted({"cpp" if is_fast else "torch" for is_fast in fast}))
    reference, fused = build(S2(), "cifar", 3, width)
    image = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    scores = {kind: torch.randn(S2().shape(kind)).double() for kind in ("normal", "reduce")}
    expected, gradients = run(reference, scores, "softmax", image, None)
    features, ours = run(fused, scores, "softmax", image, None)
    assert fused.implementation == f"fused-{backend}"
    for one, other in zip([*features, *ours], [*expected, *gradients], strict=True):
        assert (one - other).abs().max() < 1e-10


def test_gradients_are_those_of_numerical_differences() -> None:
    _, fused = build(S0(), "cifar", 3, 4)
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    scores = torch.randn(S0().shape("normal")).double()
    weights = [p for p in fused.backbone.cells[0].parameters() if p.requires_grad]
    chosen = [scores.requires_grad_(), *weights[::23]]
    probe = [torch.randn_like(f) for f in fused(image, dict.fromkeys(KINDS, Mixture(scores)))]

    def loss() -> Tensor:
        mixture = Mixture(scores.softmax(-1))
        features = fused(image, dict.fromkeys(KINDS, mixture))
        return torch.stack([(f * p).mean() for f, p in zip(features, probe, strict=True)]).sum()

    gradients = torch.autograd.grad(loss(), chosen)
    for variable, gradient in zip(chosen, gradients, strict=True):
        direction = torch.randn_like(variable)
        with torch.no_grad():
            start, step = variable.clone(), 1e-6
            variable.copy_(start + step * direction)
            above = loss().item()
            variable.copy_(start - step * direction)
            below = loss().item()
            variable.copy_(start)
        slope = (above - below) / (2 * step)
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-5, abs=1e-9)


KINDS = ("normal", "reduce")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("patch", [None, 4])
def test_rounding_is_no_more_than_five_times_the_references(
    precision: str, patch: int | None
) -> None:
    space, side = S0(), 16
    plan = SupernetSize(8, 3, "cifar").plan(space, side)
    exact = Supernet(space, 3, 3, plan, ReferenceCell).double()
    scores = {kind: torch.randn(space.shape(kind)) for kind in KINDS}
    image = torch.randn(8, 3, side, side)
    visible = visible_of(patch, side, 8)
    features, gradients = run(
        exact, {k: v.double() for k, v in scores.items()}, "softmax", image.double(), visible
    )

    def distance(cell: type[ReferenceCell]) -> tuple[float, float]:
        net = Supernet(space, 3, 3, plan, cell)
        net.load_state_dict({k: v.float() for k, v in exact_values.items()})
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            found = run(net, scores, "softmax", image, visible)
        errors = []
        for ours, theirs in zip(found, (features, gradients), strict=True):
            squares = [(a.double() - b).square().sum() for a, b in zip(ours, theirs, strict=True)]
            total = torch.stack([b.square().sum() for b in theirs]).sum()
            errors.append((torch.stack(squares).sum() / total).sqrt().item())
        return errors[0], errors[1]

    exact_values = deepcopy(exact.state_dict())
    for ours, theirs in zip(distance(FusedCell), distance(ReferenceCell), strict=True):
        assert 0 < ours < 5 * theirs


def test_the_two_cells_hold_the_same_state_in_the_same_order() -> None:
    reference, fused = build(S1(), "cifar", 5, 4)
    assert list(reference.state_dict()) == list(fused.state_dict())
    assert [n for n, _ in reference.named_parameters()] == [n for n, _ in fused.named_parameters()]


def test_costs_are_counted_edge_by_edge_whatever_computes() -> None:
    with torch.device("cpu"):
        plan = SupernetSize(16, 8).plan(S0(), 32)
        nets = [Supernet(S0(), 3, 3, plan, cell) for cell in (FusedCell, ReferenceCell)]
    mixtures = {kind: Mixture(torch.rand(S0().shape(kind))) for kind in KINDS}
    image = torch.randn(1, 3, 32, 32)
    counted = [
        count_multiply_adds(lambda net=net: net.as_reference()(image, mixtures)) for net in nets
    ]
    assert counted[0] == counted[1]
    assert counted[0] / 1e6 == pytest.approx(300.25, abs=0.005)
    assert nets[0].as_reference().implementation == "reference"


def test_a_second_backward_pass_is_the_first() -> None:
    _, fused = build(S0(), "cifar", 3, 4)
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    mixtures = {kind: Mixture(torch.rand(S0().shape(kind)).double()) for kind in KINDS}
    loss = torch.stack([f.square().mean() for f in fused(image, mixtures)]).sum()
    weights = list(fused.parameters())
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, weights)))


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


@pytest.mark.parametrize("patch", [None, 4])
def test_a_form_that_the_kernel_does_not_know_is_torchs(patch: int | None) -> None:
    check(Wide(), patch=patch, depth=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_of_another_precision_and_an_operation_of_ones_own_under_autocast(
    dtype: torch.dtype,
) -> None:
    space = Own()
    plan = SupernetSize(8, 3, "cifar").plan(space, 8)
    fused = Supernet(space, 3, 3, plan, FusedCell)
    scores = {kind: torch.rand(space.shape(kind)).to(dtype).requires_grad_() for kind in KINDS}
    with torch.autocast("cpu", torch.bfloat16):
        mixtures = {kind: Mixture(value) for kind, value in scores.items()}
        features = fused(torch.randn(4, 3, 8, 8), mixtures)
        loss = torch.stack([f.float().square().mean() for f in features]).sum()
    gradients = torch.autograd.grad(loss, [*scores.values(), *fused.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_sums_of_half_precision_do_not_overflow() -> None:
    _, fused = build(S2(), "cifar", 3, 4)
    fused.float()
    cell = fused.backbone.cells[0]
    assert isinstance(cell, FusedCell)
    source = cell._sources[0].separable
    assert source is not None
    here = Sites(66, 32, 32)  # 67,584 rows of ones: beyond float16's 65,504
    setting = Setting(here, here, plain, True)
    mixing = torch.full((2 * len(cell.edges),), 0.1)
    nodes = [torch.zeros(here.rows, 4, dtype=torch.half) for _ in range(4)]
    r = torch.ones(here.rows, 4, dtype=torch.half)
    with torch.no_grad():
        nodes, lacking = add_separable(source, setting, r, mixing, nodes, torch.zeros(4, 4))
    assert all(node.isfinite().all() for node in [*nodes, lacking])


def test_what_is_known_of_positions_serves_training_after_inference() -> None:
    sites.index.cache_clear()
    _, fused = build(S0(), "cifar", 3, 4)
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    mixtures = {kind: Mixture(torch.rand(S0().shape(kind)).double()) for kind in KINDS}
    with torch.inference_mode():
        fused(image, mixtures)
    fused(image, mixtures)[0].sum().backward()


def test_a_mask_that_shows_more_than_it_says_is_refused_by_cpp() -> None:
    _, fused = build(S0(), "cifar", 3, 4)
    mixtures = {kind: Mixture(torch.rand(S0().shape(kind)).double()) for kind in KINDS}
    visible = VisibleMap(torch.zeros(1, 2, 2, dtype=torch.bool), 4, 2)
    with pytest.raises(ValueError, match="shows more or fewer patches"):
        fused(torch.randn(1, 3, 8, 8, dtype=torch.float64), mixtures, visible)


def test_a_copy_of_a_fused_supernet_computes_with_its_own_weights() -> None:
    _, fused = build(S0(), "cifar", 3, 4)
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    mixtures = {kind: Mixture(torch.rand(S0().shape(kind)).double()) for kind in KINDS}
    expected = fused(image, mixtures)
    copied = deepcopy(fused)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    for one, other in zip(copied(image, mixtures), expected, strict=True):
        assert torch.equal(one, other)
    assert not any(isinstance(m, Zero) and list(m.parameters()) for m in copied.modules())
