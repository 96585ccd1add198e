from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mae_nas.search.bilevel import VirtualStep, mean_gradient, unrolled_gradient

LR, MOMENTUM, DECAY = 0.3, 0.9, 0.05
Losses = tuple[Callable[..., Tensor], Callable[..., Tensor]]


def problem(dtype: torch.dtype = torch.float64) -> tuple[Losses, list[Tensor], list[Tensor]]:
    """Two smooth losses of the same two weights and two α, on different data."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    def loss(x: Tensor, y: Tensor) -> Callable[..., Tensor]:
        def evaluate(weights: list[Tensor], alphas: list[Tensor]) -> Tensor:
            hidden = (x @ weights[0]).tanh() * alphas[0].softmax(0) + (alphas[1] * x).sum(1)[
                :, None
            ]
            return ((hidden.sin() @ weights[1] - y) ** 2).mean()

        return evaluate

    losses = loss(draw(7, 3), draw(7, 2)), loss(draw(6, 3), draw(6, 2))
    weights = [draw(3, 4).requires_grad_(), draw(4, 2).requires_grad_()]
    alphas = [draw(4).requires_grad_(), draw(3).requires_grad_()]
    return losses, weights, alphas


def momentum_of(weights: list[Tensor]) -> list[Tensor]:
    return [torch.full_like(weight, 0.1).detach() for weight in weights]


def zeros_of(weights: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(weight) for weight in weights]


def exact_gradient(
    losses: Losses, weights: list[Tensor], alphas: list[Tensor], buffers: list[Tensor]
) -> list[Tensor]:
    """DARTS, Eq. 7, by differentiating through the virtual step."""
    train, val = losses
    gradients = torch.autograd.grad(train(weights, alphas), weights, create_graph=True)
    moved = [
        w - LR * (g + MOMENTUM * m + DECAY * w)
        for w, g, m in zip(weights, gradients, buffers, strict=True)
    ]
    # The weights themselves do not depend on α: DARTS drops nothing else.
    return list(torch.autograd.grad(val(moved, alphas), alphas))


def approximate(scale: float, with_momentum: bool = True) -> tuple[Tensor, list[Tensor | None]]:
    """Our gradient after the substitution w = scale · u, under which R becomes scale · R in w."""
    (train, val), weights, alphas = problem()
    scaled = [(weight / scale).detach().requires_grad_() for weight in weights]
    buffers = [scale * m for m in momentum_of(weights)] if with_momentum else zeros_of(weights)
    virtual = VirtualStep(LR / scale**2, MOMENTUM, DECAY * scale**2, buffers)
    return unrolled_gradient(
        [lambda: train([scale * u for u in scaled], alphas)],
        [lambda: val([scale * u for u in scaled], alphas)],
        scaled,
        alphas,
        virtual,
    )


def first_order(
    loss: Callable[..., Tensor], weights: list[Tensor], alphas: list[Tensor]
) -> list[Tensor | None]:
    return mean_gradient([lambda: loss(weights, alphas)], alphas)[1]


def distance(found: list[Tensor | None], expected: list[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return float(torch.stack([(f - e).norm() for f, e in pairs if f is not None]).norm())


@pytest.mark.parametrize("with_momentum", [True, False])
def test_unrolled_gradient_converges_to_the_exact_one_as_the_square_of_the_radius(
    with_momentum: bool,
) -> None:
    losses, weights, alphas = problem()
    buffers = momentum_of(weights) if with_momentum else zeros_of(weights)
    expected = exact_gradient(losses, weights, alphas, buffers)
    errors = [distance(approximate(s, with_momentum)[1], expected) for s in (16.0, 8.0, 4.0, 2.0)]
    for larger, smaller in pairwise(errors):
        assert larger / smaller == pytest.approx(4.0, rel=0.1)
    first = first_order(losses[1], weights, alphas)
    assert errors[-1] < 1e-3 * distance(first, expected)


def test_weights_are_perturbed_by_a_hundredth_in_norm() -> None:
    (train, val), weights, alphas = problem()
    seen: list[Tensor] = []

    def recording() -> Tensor:
        seen.append(torch.cat([weight.detach().flatten() for weight in weights]))
        return train(weights, alphas)

    virtual = VirtualStep(LR, MOMENTUM, DECAY, momentum_of(weights))
    unrolled_gradient([recording], [lambda: val(weights, alphas)], weights, alphas, virtual)
    at, plus, minus = seen
    torch.testing.assert_close(plus - at, at - minus)
    assert float((plus - at).norm()) == pytest.approx(0.01)  # R·‖v‖, DARTS, Sec. 2.3


def test_unrolled_gradient_returns_the_loss_at_the_virtual_weights() -> None:
    losses, weights, alphas = problem()
    train, val = losses
    gradients = torch.autograd.grad(train(weights, alphas), weights)
    buffers = momentum_of(weights)
    moved = [
        w - LR * (g + MOMENTUM * m + DECAY * w)
        for w, g, m in zip(weights, gradients, buffers, strict=True)
    ]
    found, _ = approximate(1.0)
    torch.testing.assert_close(found, val(moved, alphas).detach(), rtol=1e-12, atol=0)
    assert not found.requires_grad


def test_unrolled_gradient_restores_the_weights_bit_for_bit() -> None:
    (train, val), weights, alphas = problem(torch.float32)
    with torch.no_grad():
        for weight in weights:
            weight.mul_(1e-3)  # as small as the perturbation: undoing it would round
    before = [weight.detach().clone() for weight in weights]
    virtual = VirtualStep(LR, MOMENTUM, DECAY, momentum_of(weights))
    unrolled_gradient(
        [lambda: train(weights, alphas)],
        [lambda: val(weights, alphas)],
        weights,
        alphas,
        virtual,
    )
    assert all(map(torch.equal, weights, before))
    assert all(tensor.grad is None for tensor in [*weights, *alphas])
    assert torch.equal(virtual.buffers[0], momentum_of(weights)[0])


@pytest.mark.parametrize("failing_call", [1, 2, 3, 4])
def test_unrolled_gradient_restores_the_weights_when_a_loss_raises(failing_call: int) -> None:
    losses, weights, alphas = problem()
    before = [weight.detach().clone() for weight in weights]
    calls = 0

    def counted(loss: Callable[..., Tensor]) -> Callable[[], Tensor]:
        def evaluate() -> Tensor:
            nonlocal calls
            calls += 1
            if calls == failing_call:
                raise RuntimeError("out of memory")
            return loss(weights, alphas)

        return evaluate

    with pytest.raises(RuntimeError, match="out of memory"):
        unrolled_gradient(
            [counted(losses[0])],
            [counted(losses[1])],
            weights,
            alphas,
            VirtualStep(LR, 0, 0, zeros_of(weights)),
        )
    assert calls == failing_call
    assert all(map(torch.equal, weights, before))


def test_gradients_are_none_where_alpha_has_no_influence() -> None:
    (train, val), weights, alphas = problem()
    idle = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(val(weights, alphas), alphas)
    _, found = mean_gradient([lambda: val(weights, alphas)], [alphas[0], idle, alphas[1]])
    assert found[1] is None
    assert torch.equal(found[0], expected[0])  # type: ignore[arg-type]
    assert torch.equal(found[2], expected[1])  # type: ignore[arg-type]
    _, unrolled = unrolled_gradient(
        [lambda: train(weights, alphas)],
        [lambda: val(weights, alphas)],
        weights,
        [alphas[0], idle, alphas[1]],
        VirtualStep(LR, MOMENTUM, DECAY, momentum_of(weights)),
    )
    assert unrolled[1] is None
    assert distance(unrolled[::2], approximate(1.0)[1]) < 1e-12  # type: ignore[arg-type]


def test_unrolled_gradient_without_learning_rate_is_first_order() -> None:
    (train, val), weights, alphas = problem()
    expected = first_order(val, weights, alphas)
    _, found = unrolled_gradient(
        [lambda: train(weights, alphas)],
        [lambda: val(weights, alphas)],
        weights,
        alphas,
        VirtualStep(0.0, MOMENTUM, DECAY, zeros_of(weights)),
    )
    assert distance(found, expected) == 0  # type: ignore[arg-type]


def test_gradients_of_micro_batches_are_those_of_their_mean() -> None:
    (one, other), weights, alphas = problem()
    virtual = VirtualStep(LR, MOMENTUM, DECAY, momentum_of(weights))

    def mean() -> Tensor:
        return (one(weights, alphas) + other(weights, alphas)) / 2

    parts = [lambda: one(weights, alphas), lambda: other(weights, alphas)]
    expected = torch.autograd.grad(mean(), alphas)
    loss, found = mean_gradient(parts, alphas)
    assert distance(found, list(expected)) < 1e-14
    torch.testing.assert_close(loss, mean().detach(), rtol=1e-14, atol=0)
    loss, unrolled = unrolled_gradient(parts, parts[::-1], weights, alphas, virtual)
    whole_loss, whole = unrolled_gradient([mean], [mean], weights, alphas, virtual)
    assert distance(unrolled, whole) < 1e-12  # type: ignore[arg-type]
    torch.testing.assert_close(loss, whole_loss, rtol=1e-14, atol=0)


def test_alpha_that_only_the_validation_loss_knows_gets_its_direct_gradient() -> None:
    (train, val), weights, alphas = problem()
    extra = torch.ones(2, dtype=torch.float64, requires_grad=True)
    _, found = unrolled_gradient(
        [lambda: train(weights, alphas)],
        [lambda: val(weights, alphas) + (3 * extra).sum()],
        weights,
        [extra],
        VirtualStep(LR, MOMENTUM, DECAY, zeros_of(weights)),
    )
    assert found[0] is not None
    assert found[0].tolist() == [3.0, 3.0]


def test_an_alpha_without_any_influence_has_no_gradient() -> None:
    alpha = torch.zeros(3, requires_grad=True)
    value, (gradient,) = mean_gradient([lambda: torch.tensor(2.0)], [alpha])
    assert (value.item(), gradient) == (2.0, None)
