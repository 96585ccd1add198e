"""The fused cell against the reference: same outputs, gradients and running statistics."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import product

import pytest
import torch
from torch import Tensor

from mae_nas.backbone import CELL_KINDS
from mae_nas.masking import VisibleMap
from mae_nas.relaxations import DARTS, Mixture
from mae_nas.spaces import S0, S1, S2, S3, S4, SearchSpace
from mae_nas.supernet import FusedCell, ReferenceCell, Supernet, SupernetSize
from mae_nas.supernet.depthwise import cpp

SPACES: dict[str, Callable[[], SearchSpace]] = {"s0": S0, "s1": S1, "s2": S2, "s3": S3, "s4": S4}
MIXTURES = ("softmax", "one-hot", "sigmoid", "signed")
PATCHES = {"cifar": (None, 2, 4, 8), "small": (None, 2, 4, 8, 16), "imagenet": (None, 2, 4, 8, 16)}
BY_DEFAULT = "fused-torch" if cpp.library() is None else "fused-cpp"
Both = Callable[..., tuple[Supernet, Supernet]]
Passes = Callable[..., tuple[list[Tensor], list[Tensor]]]
Check = Callable[..., None]
ScoresOf = Callable[[SearchSpace], dict[str, Tensor]]
VisibleOf = Callable[..., VisibleMap | None]
OnFive = Callable[[type[SearchSpace]], SearchSpace]


PAIRWISE = [
    ("s0", "one-hot", "small", 8, "torch"),
    ("s0", "sigmoid", "cifar", 2, "torch"),
    ("s0", "sigmoid", "imagenet", None, "torch"),
    ("s0", "signed", "cifar", 4, "cpp"),
    ("s0", "softmax", "imagenet", 16, "torch"),
    ("s1", "one-hot", "imagenet", 4, "cpp"),
    ("s1", "sigmoid", "cifar", 8, "cpp"),
    ("s1", "signed", "cifar", 2, "torch"),
    ("s1", "softmax", "imagenet", 16, "cpp"),
    ("s1", "softmax", "small", None, "cpp"),
    ("s2", "one-hot", "imagenet", 2, "cpp"),
    ("s2", "sigmoid", "cifar", 4, "torch"),
    ("s2", "signed", "cifar", None, "cpp"),
    ("s2", "signed", "small", 16, "torch"),
    ("s2", "softmax", "cifar", 8, "torch"),
    ("s3", "one-hot", "small", 4, "torch"),
    ("s3", "sigmoid", "cifar", None, "cpp"),
    ("s3", "sigmoid", "imagenet", 16, "cpp"),
    ("s3", "signed", "imagenet", 8, "cpp"),
    ("s3", "softmax", "cifar", 2, "cpp"),
    ("s4", "one-hot", "cifar", None, "cpp"),
    ("s4", "one-hot", "imagenet", 16, "torch"),
    ("s4", "sigmoid", "small", 2, "cpp"),
    ("s4", "signed", "cifar", 8, "torch"),
    ("s4", "softmax", "imagenet", 4, "torch"),
]
"""Any two values that can stand together stand together in one of these."""


def every() -> Iterator[tuple[str, ...]]:
    for stem, patches in PATCHES.items():
        yield from product(SPACES, MIXTURES, [stem], patches, ("cpp", "torch"))


@pytest.mark.parametrize(("space", "mixture", "stem", "patch", "backend"), PAIRWISE)
def test_fused_equals_the_reference(
    check: Check, space: str, mixture: str, stem: str, patch: int | None, backend: str
) -> None:
    check(SPACES[space](), mixture, stem, patch, backend, depth=4)


@pytest.mark.slow
@pytest.mark.parametrize(("space", "mixture", "stem", "patch", "backend"), list(every()))
def test_fused_equals_the_reference_in_every_combination(
    check: Check, space: str, mixture: str, stem: str, patch: int | None, backend: str
) -> None:
    check(SPACES[space](), mixture, stem, patch, backend)


@pytest.mark.parametrize("patch", [None, 4])
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_running_statistics_serve_outside_training(
    on_five_edges: OnFive, check: Check, patch: int | None, backend: str
) -> None:
    check(on_five_edges(S0), patch=patch, backend=backend, is_training=False)


@pytest.mark.parametrize("patch", [None, 2, 8])
def test_recomputing_by_cpp_or_torch_changes_nothing(
    on_five_edges: OnFive, check: Check, patch: int | None
) -> None:
    check(on_five_edges(S0), patch=patch, backend="cpp", recomputes=True)
    check(S1(), patch=patch, backend="torch", recomputes=True)


def test_an_image_that_shows_more_than_another_is_computed_densely(
    on_five_edges: OnFive, both: Both, passes: Passes, scores_of: ScoresOf
) -> None:
    hidden = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [1, 0]], [[1, 0], [0, 1]]]).bool()
    reference, fused = both(on_five_edges(S0), width=8)
    image = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    scores = scores_of(on_five_edges(S0))
    visible = VisibleMap(hidden, 8)
    expected, gradients = passes(reference, scores, "softmax", image, visible)
    features, ours = passes(fused, scores, "softmax", image, visible)
    assert fused.implementation == BY_DEFAULT
    for one, other in zip([*features, *ours], [*expected, *gradients], strict=True):
        assert (one - other).abs().max() < 1e-10


@pytest.mark.parametrize("width", [2, 4, 6, 8, 12, 16])
def test_widths_beside_the_kernels_vectors_are_right_too(
    both: Both, passes: Passes, scores_of: ScoresOf, width: int
) -> None:
    compiled = cpp.library() is not None
    fast = [width * 2**stage % 4 == 0 and compiled for stage in range(3)]
    backend = ", fused-".join(sorted({"cpp" if is_fast else "torch" for is_fast in fast}))
    reference, fused = both(S2(), width=width)
    image = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    scores = scores_of(S2())
    expected, gradients = passes(reference, scores, "softmax", image, None)
    features, ours = passes(fused, scores, "softmax", image, None)
    assert fused.implementation == f"fused-{backend}"
    for one, other in zip([*features, *ours], [*expected, *gradients], strict=True):
        assert (one - other).abs().max() < 1e-10


@pytest.mark.parametrize("compiles", [True, False])
def test_gradients_of_one_image_may_lie_channels_first(
    on_five_edges: OnFive, both: Both, compiles: bool
) -> None:
    reference, fused = both(on_five_edges(S0), width=8, compiles=compiles)
    image = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    mixtures, gradients = DARTS(on_five_edges(S0)).double().mixture(), []
    for net in (reference, fused):
        features = net(image, mixtures)
        loss = torch.stack([(f.flatten(1) ** 2).sum() for f in features]).sum()  # channels first
        gradients.append(torch.autograd.grad(loss, list(net.parameters()), retain_graph=True))
    assert fused.implementation == (BY_DEFAULT if compiles else "fused-torch")
    for ours, theirs in zip(*gradients, strict=True):
        assert ours is theirs is None or (ours - theirs).abs().max() < 1e-9 * (
            1 + theirs.abs().max()
        )


def test_gradients_are_those_of_numerical_differences(both: Both) -> None:
    _, fused = both()
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    scores = torch.randn(S0().shape("normal")).double()
    weights = [p for p in fused.backbone.cells[0].parameters() if p.requires_grad]
    chosen = [scores.requires_grad_(), *weights[::23]]
    probe = [torch.randn_like(f) for f in fused(image, dict.fromkeys(CELL_KINDS, Mixture(scores)))]

    def loss() -> Tensor:
        mixture = Mixture(scores.softmax(-1))
        features = fused(image, dict.fromkeys(CELL_KINDS, mixture))
        return torch.stack([(f * p).mean() for f, p in zip(features, probe, strict=True)]).sum()

    gradients = torch.autograd.grad(loss(), chosen)
    assert fused.implementation == BY_DEFAULT
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


@pytest.mark.parametrize("patch", [None, 4])
def test_rounding_is_no_more_than_five_times_the_references(
    on_five_edges: OnFive, passes: Passes, visible_of: VisibleOf, patch: int | None
) -> None:
    space, side = on_five_edges(S0), 16
    plan = SupernetSize(8, 3, "cifar").plan(space, side)
    exact = Supernet(space, 3, 3, plan, ReferenceCell).double()
    scores = {kind: torch.randn(space.shape(kind)) for kind in CELL_KINDS}
    image = torch.randn(4, 3, side, side)
    visible = visible_of(patch, side, 4)
    features, gradients = passes(
        exact, {k: v.double() for k, v in scores.items()}, "softmax", image.double(), visible
    )

    def distance(cell: type[ReferenceCell], is_half: bool) -> list[float]:
        """Of the features, the gradients of α, those of the weights, and running statistics."""
        net = Supernet(space, 3, 3, plan, cell)
        net.load_state_dict({k: v.float() for k, v in exact_values.items()})
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            ours, found = passes(net, scores, "softmax", image, visible)
        by_torch = "fused-torch"  # the kernel computes in float32 and wider
        wanted = "reference" if cell is ReferenceCell else by_torch if is_half else BY_DEFAULT
        assert net.implementation == wanted
        errors, kinds = [], len(CELL_KINDS)
        pairs = [(ours, features), (found[:kinds], gradients[:kinds])]
        pairs.append((found[kinds:], gradients[kinds:]))
        for statistic in ("running_mean", "running_var"):
            both = (net.state_dict(), exact.state_dict())
            one, other = ([v for k, v in x.items() if statistic in k] for x in both)
            pairs.append((one, other))
        for ours, theirs in pairs:
            squares = [(a.double() - b).square().sum() for a, b in zip(ours, theirs, strict=True)]
            total = torch.stack([b.square().sum() for b in theirs]).sum()
            errors.append((torch.stack(squares).sum() / total).sqrt().item())
        return errors

    exact_values = deepcopy(exact.state_dict())
    for is_half in (False, True):
        pairs = zip(distance(FusedCell, is_half), distance(ReferenceCell, is_half), strict=True)
        for ours, theirs in pairs:
            assert 0 < ours < 5 * theirs, f"half: {is_half}"
