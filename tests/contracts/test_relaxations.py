"""What every relaxation must do: adding one to the package adds its tests."""

import inspect
import pkgutil
from importlib import import_module

import pytest
import torch

import mae_nas.relaxations
from mae_nas.relaxations import Relaxation
from mae_nas.spaces import S0, S1, S3, SearchSpace


def relaxations() -> list[type[Relaxation]]:
    found: set[type[Relaxation]] = set()
    for info in pkgutil.walk_packages(mae_nas.relaxations.__path__, "mae_nas.relaxations."):
        members = inspect.getmembers(import_module(info.name), inspect.isclass)
        found |= {c for _, c in members if issubclass(c, Relaxation) and not inspect.isabstract(c)}
    return sorted((c for c in found if c.learns), key=lambda c: c.__name__)


every_relaxation = pytest.mark.parametrize("relaxation", relaxations())
every_space = pytest.mark.parametrize("space", [S0(), S1(), S3()], ids=["S0", "S1", "S3"])


def test_the_package_has_relaxations() -> None:
    assert "DARTS" in {c.__name__ for c in relaxations()}


@every_relaxation
@every_space
def test_mixture_and_scores_fit_the_space(relaxation: type[Relaxation], space: SearchSpace) -> None:
    made = relaxation(space)
    mixture, scores = made.mixture(), made.scores()
    assert list(mixture) == list(scores) == ["normal", "reduce"]
    for kind in mixture:
        for values in (mixture[kind].ops, scores[kind]):
            assert values.shape == space.shape(kind)
            assert values.dtype == torch.float32
            assert values.isfinite().all()
        assert mixture[kind].ops.requires_grad
        assert not scores[kind].requires_grad
        assert made.alphas[kind].shape == space.shape(kind)


@every_relaxation
@every_space
def test_gradient_reaches_every_alpha(relaxation: type[Relaxation], space: SearchSpace) -> None:
    made = relaxation(space)
    mixture = made.mixture()
    weighted = [(m.ops * torch.randn(m.ops.shape)).sum() for m in mixture.values()]
    torch.stack(weighted).sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).all(), name


@every_relaxation
def test_raising_an_alpha_raises_its_own_score(relaxation: type[Relaxation]) -> None:
    made = relaxation(S0())
    before = made.scores()["reduce"][3, 5]
    with torch.no_grad():
        made.alphas["reduce"][3, 5] += 1.0
    assert made.scores()["reduce"][3, 5] > before
    assert made.scores()["reduce"][3].argmax() == 5


@every_relaxation
def test_state_survives_a_round_trip(relaxation: type[Relaxation]) -> None:
    first, second = relaxation(S1()), relaxation(S1())
    assert not torch.equal(first.scores()["normal"], second.scores()["normal"])
    second.load_state_dict(first.state_dict())
    for kind, scores in first.scores().items():
        assert torch.equal(second.scores()[kind], scores)


@every_relaxation
def test_half_precision_leaves_the_mixture_wide(relaxation: type[Relaxation]) -> None:
    made = relaxation(S0())
    exact = made.mixture()["normal"].ops
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.mixture()["normal"].ops, exact)
