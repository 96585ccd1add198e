"""Gradients of the architecture parameters: first order, and unrolled (DARTS, Eq. 7-8)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Loss = Callable[[], Tensor]
"""Evaluates a loss at the present weights and α; the same batch and mask at every call."""


class VirtualStep(NamedTuple):
    """The weight step that the unrolled gradient looks ahead by: SGD as the optimizer holds it.

    Args:
        lr: η, the learning rate of the coming weight step.
        momentum: μ.
        weight_decay: λ.
        buffers: momentum buffers, one per weight; empty before the first step.
    """

    lr: float
    momentum: float
    weight_decay: float
    buffers: Sequence[Tensor]


def first_order_gradient(loss: Tensor, alphas: Sequence[Tensor]) -> list[Tensor | None]:
    """∂L_val/∂α at the present weights (DARTS, Sec. 2.3, ξ = 0); None where α has no influence."""
    return list(torch.autograd.grad(loss, alphas, allow_unused=True))


def unrolled_gradient(
    train_loss: Loss,
    val_loss: Loss,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    virtual: VirtualStep,
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradient of L_val(w*(α), α), w* = w − η(μm + ∇_w L_train + λw) (DARTS, Eq. 7).

        ∂_α L_val(w*, α) − η · (∂_α L_train(w⁺, α) − ∂_α L_train(w⁻, α)) / 2R
        w^± = w ± R·v,  v = ∂_w L_val(w*, α),  R = 0.01/‖v‖                      (DARTS, Eq. 8)

    Weights are perturbed in place and restored bit for bit, also on an exception.

    Returns:
        L_val(w*, α), and the gradient for each α (None where α has no influence).
    """
    saved = [weight.detach().clone() for weight in weights]
    try:
        _look_ahead(train_loss, weights, virtual)
        loss = val_loss()
        gradients = torch.autograd.grad(loss, [*alphas, *weights], allow_unused=True)
        direct = list(gradients[: len(alphas)])
        direction = [
            torch.zeros_like(weight) if gradient is None else gradient
            for weight, gradient in zip(weights, gradients[len(alphas) :], strict=True)
        ]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction)))
        radius = 0.01 / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        shift = torch._foreach_mul(direction, radius)
        plus = _gradient_at(train_loss, alphas, weights, torch._foreach_add(saved, shift))
        minus = _gradient_at(train_loss, alphas, weights, torch._foreach_sub(saved, shift))
    finally:
        _assign(weights, saved)
    return loss.detach(), [
        None if d is None else d - (virtual.lr / (2 * radius)) * _difference(p, m, d)
        for d, p, m in zip(direct, plus, minus, strict=True)
    ]


def _look_ahead(train_loss: Loss, weights: Sequence[Tensor], virtual: VirtualStep) -> None:
    gradients = torch.autograd.grad(train_loss(), weights, materialize_grads=True)
    with torch.no_grad():
        step = torch._foreach_add(gradients, list(weights), alpha=virtual.weight_decay)
        if virtual.buffers:
            torch._foreach_add_(step, list(virtual.buffers), alpha=virtual.momentum)
        torch._foreach_add_(list(weights), step, alpha=-virtual.lr)


def _gradient_at(
    loss: Loss, alphas: Sequence[Tensor], weights: Sequence[Tensor], values: Sequence[Tensor]
) -> list[Tensor | None]:
    _assign(weights, values)
    return first_order_gradient(loss(), alphas)


@torch.no_grad()
def _assign(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    torch._foreach_copy_(list(weights), list(values))


def _difference(plus: Tensor | None, minus: Tensor | None, like: Tensor) -> Tensor:
    if plus is None or minus is None:
        return torch.zeros_like(like)
    return plus - minus
