"""A reference and a fused supernet of the same weights, side by side in float64."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from mae_nas.backbone import CELL_KINDS
from mae_nas.masking import Masking, VisibleMap
from mae_nas.relaxations import Mixture
from mae_nas.spaces import S0, SearchSpace
from mae_nas.supernet import FusedCell, ReferenceCell, Supernet, SupernetSize
from mae_nas.supernet.depthwise import cpp

SIDES = {"cifar": 16, "small": 32, "imagenet": 64}
MIXTURES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda scores: scores.softmax(-1),
    "one-hot": lambda scores: torch.eye(scores.shape[-1], dtype=scores.dtype)[scores.argmax(-1)],
    "sigmoid": torch.sigmoid,
    "signed": lambda scores: scores,
}
Passes = tuple[list[Tensor], list[Tensor]]


@pytest.fixture(scope="session")
def both() -> Callable[..., tuple[Supernet, Supernet]]:
    """A reference and a fused supernet with the same weights."""

    def build(
        space: SearchSpace | None = None,
        stem: str = "cifar",
        depth: int = 3,
        width: int = 4,
        **arguments: bool,
    ) -> tuple[Supernet, Supernet]:
        space = space or S0()
        plan = SupernetSize(width, depth, stem).plan(space, SIDES[stem])  # type: ignore[arg-type]
        reference = Supernet(space, 3, 3, plan, ReferenceCell).double()
        fused = Supernet(space, 3, 3, plan, partial(FusedCell, **arguments)).double()
        fused.load_state_dict(reference.state_dict())
        return reference, fused

    return build


@pytest.fixture(scope="session")
def scores_of() -> Callable[[SearchSpace], dict[str, Tensor]]:
    """Random scores of every candidate."""
    return lambda space: {kind: torch.randn(space.shape(kind)).double() for kind in CELL_KINDS}


@pytest.fixture(scope="session")
def visible_of() -> Callable[..., VisibleMap | None]:
    """What half of the patches leave visible; None of no patches."""

    def make(patch: int | None, side: int, batch: int = 3) -> VisibleMap | None:
        if patch is None:
            return None
        masking = Masking(0.5, patch, "sparse")
        return masking.visible(masking.sample(5, torch.arange(batch), side))

    return make


@pytest.fixture(scope="session")
def passes() -> Callable[..., Passes]:
    """Features of a second pass, and gradients of all scores, weights and the image."""

    def run(
        net: Supernet, scores: dict[str, Tensor], mixture: str, image: Tensor, visible: object
    ) -> Passes:
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

    return run


def at_rest(net: Supernet) -> None:
    """Outside training, with running statistics that are those of no batch."""
    for statistic in net.buffers():
        if statistic.is_floating_point():
            torch.manual_seed(statistic.numel())
            statistic.copy_(torch.rand_like(statistic) + 0.5)
    net.eval()


@pytest.fixture(scope="session")
def check(
    both: Callable[..., tuple[Supernet, Supernet]],
    scores_of: Callable[[SearchSpace], dict[str, Tensor]],
    visible_of: Callable[..., VisibleMap | None],
    passes: Callable[..., Passes],
) -> Callable[..., None]:
    """Assert that both have the same features, gradients and running statistics."""

    def compare(  # noqa: PLR0913 - what is combined
        space: SearchSpace,
        mixture: str = "softmax",
        stem: str = "cifar",
        patch: int | None = None,
        backend: str = "cpp",
        depth: int = 3,
        width: int = 8,
        is_training: bool = True,
        recomputes: bool = False,
        implementation: str = "",
    ) -> None:
        compiles = backend == "cpp"
        if compiles and cpp.library() is None:
            pytest.skip("no C++ compiler")
        reference, fused = both(space, stem, depth, width, compiles=compiles, recomputes=recomputes)
        if not is_training:
            at_rest(reference)
            at_rest(fused)
        side, scores = SIDES[stem], scores_of(space)
        # The last map has four sites an image there: from twelve, variances may be nearly zero.
        images = 6 if stem == "imagenet" else 3
        image = torch.randn(images, 3, side, side, dtype=torch.float64)
        visible = visible_of(patch, side, images)
        expected, gradients = passes(reference, scores, mixture, image, visible)
        features, ours = passes(fused, scores, mixture, image, visible)
        assert fused.implementation == (implementation or f"fused-{backend}")
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

    return compare
