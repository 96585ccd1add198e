"""Gradients of the architecture parameters: first order, and unrolled (DARTS, Eq. 7-8).

Losses are means over a rank's images; what is returned is the mean over all ranks.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mae_nas import ranks

Loss = Callable[[], Tensor]
"""A loss at the present weights and α: the same images and the same mask at every call."""


class VirtualStep(NamedTuple):
    """The weight step that the unrolled gradient looks ahead by: SGD as the optimizer holds it.

    Args:
        lr: η, the learning rate of the coming weight step.
        momentum: μ.
        weight_decay: λ.
        buffers: momentum buffers m, one per weight; zeros before the first step.
    """

    lr: float | Tensor
    momentum: float
    weight_decay: float
    buffers: Sequence[Tensor]


def mean_gradient(
    losses: Sequence[Loss], inputs: Sequence[Tensor], scale: Tensor | float = 1.0
) -> tuple[Tensor, list[Tensor | None]]:
    """The mean of the micro-batches' losses, and its gradient for each of `inputs`.

    With α as inputs this is DARTS's first-order gradient (DARTS, Sec. 2.3, ξ = 0). A gradient is
    None where the input has no influence. Gradients are returned `scale` times as large, so that
    float16 can hold what lies between.
    """
    values: list[Tensor] = []
    total: Sequence[Tensor | None] = [None] * len(inputs)
    for loss in losses:
        value = loss() / len(losses)
        gradients: Sequence[Tensor | None] = [None] * len(inputs)
        if value.requires_grad:  # or none has influence
            gradients = torch.autograd.grad(value * scale, inputs, allow_unused=True)
        total = list(map(_plus, total, gradients)) if values else gradients
        values.append(value.detach())
    mean = torch.stack(values).sum()
    ranks.average_([mean, *(gradient for gradient in total if gradient is not None)])
    return mean, list(total)


def unrolled_gradient(
    train_losses: Sequence[Loss],
    val_losses: Sequence[Loss],
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    virtual: VirtualStep,
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradient of L_val(w*(α), α), w* = w − η(μm + ∇_w L_train + λw) (DARTS, Eq. 7).

        ∂_α L_val(w*, α) − η · (∂_α L_train(w⁺, α) − ∂_α L_train(w⁻, α)) / 2R
        w^± = w ± R·v,  v = ∂_w L_val(w*, α),  R = 0.01/‖v‖                      (DARTS, Eq. 8)

    Losses are per micro-batch. Weights are perturbed in place and restored bit for bit, also on an
    exception.

    Returns:
        L_val(w*, α), and the gradient for each α (None where α has no influence).
    """
    saved = [weight.detach().clone() for weight in weights]
    try:
        _look_ahead(train_losses, weights, virtual)
        loss, gradients = mean_gradient(val_losses, [*alphas, *weights])
        direct = gradients[: len(alphas)]
        direction = _filled(gradients[len(alphas) :], weights)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction)))
        radius = 0.01 / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        shift = torch._foreach_mul(direction, radius)
        _assign(weights, torch._foreach_add(saved, shift))
        plus = _filled(mean_gradient(train_losses, alphas)[1], alphas)
        _assign(weights, torch._foreach_sub(saved, shift))
        minus = _filled(mean_gradient(train_losses, alphas)[1], alphas)
    finally:
        _assign(weights, saved)
    return loss, [
        None if d is None else d - (virtual.lr / (2 * radius)) * (p - m)
        for d, p, m in zip(direct, plus, minus, strict=True)
    ]


def _look_ahead(losses: Sequence[Loss], weights: Sequence[Tensor], virtual: VirtualStep) -> None:
    gradients = _filled(mean_gradient(losses, weights)[1], weights)
    with torch.no_grad():
        step = torch._foreach_add(gradients, list(weights), alpha=virtual.weight_decay)
        torch._foreach_add_(step, list(virtual.buffers), alpha=virtual.momentum)
        torch._foreach_mul_(step, virtual.lr)
        torch._foreach_sub_(list(weights), step)


@torch.no_grad()
def _assign(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    torch._foreach_copy_(list(weights), list(values))


def _filled(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    pairs = zip(gradients, like, strict=True)
    return [torch.zeros_like(tensor) if grad is None else grad for grad, tensor in pairs]


def _plus(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    if total is None or gradient is None:
        return gradient if total is None else total
    return total + gradient
