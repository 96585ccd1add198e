"""Pointwise convolution, BatchNorm and mixing weight as one product.

For y = W z, BatchNorm's statistics follow from the first two moments of its input,

    μ_y = W μ_z,    σ²_y = diag(W K Wᵀ),    K = Cov(z) = E[z zᵀ] − μ_z μ_zᵀ,

so that a · BN(y) = W' z + b with W' = diag(s) W, b = −s ⊙ μ_y, s = a ρ and ρ = 1 / √(σ²_y + ε):
neither y nor BN(y) nor a · BN(y) ever exists, in the forward pass or for the backward one. A pool
is the case W = I, for which the diagonal of K suffices.

Gradients, from ∂W' and ∂b, with v = σ²_y:

    ∂s = (∂W' ⊙ W) 1 − ∂b ⊙ μ_y          ∂a = 1ᵀ (∂s ⊙ ρ)       ∂v = −½ s ρ² ⊙ ∂s
    ∂μ_y = −s ⊙ ∂b                        ∂K = Wᵀ diag(∂v) W      ∂μ_z = Wᵀ ∂μ_y
    ∂W = diag(s) ∂W' + ∂μ_y μ_zᵀ + 2 diag(∂v) W K

and each of the N rows of z receives, by way of its mean and covariance,

    ∂z = (∂μ_z + 2 ∂K (z − μ_z)) / N.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mae_nas import ranks


class Moments(NamedTuple):
    """Mean (Q, C) of z, and E[z zᵀ] (Q, C, C) or, for pools, its diagonal (Q, C)."""

    mean: Tensor
    second: Tensor


class Affine(NamedTuple):
    """A gradient of z: constant (Q, C) + z · slope (Q, C, C); of pools, z ⊙ slope (Q, C)."""

    constant: Tensor
    slope: Tensor

    def add_to(self, gradient: Tensor, z: Tensor) -> None:
        """Add it for z (Q, M, C) to `gradient`, likewise."""
        gradient.add_(self.constant[:, None]).baddbmm_(z, self.slope)


class Norms:
    """BatchNorms without affine parts whose inputs are seen at the same sites.

    Args:
        norms: one for each of Q inputs, or several: edges that share a pool.
        count: visible rows of this rank: a number, or a tensor () where a mask decides.
    """

    def __init__(self, norms: Sequence[nn.BatchNorm2d], count: Tensor | int) -> None:
        self.norms = norms
        self.count = count
        self.eps = norms[0].eps
        momentum = norms[0].momentum
        assert momentum is not None  # a mean of all batches, see `FusedCell`
        self._momentum = momentum
        self._is_across = getattr(norms[0], "synchronised", False) and ranks.size() > 1

    def centred(self, moments: Moments, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and covariance, those of all ranks if the norms say so; `count` is theirs then.

        The mean lacks this rank's own `shift`, (Q, C).
        """
        mean, second = moments
        covariance = second - _square(mean, second)
        if not self._is_across:
            return mean, covariance
        count = torch.as_tensor(self.count, dtype=mean.dtype, device=mean.device)
        shift = torch.zeros_like(mean) if shift is None else shift.to(mean.dtype)
        mean = mean + shift
        every = ranks.gather(torch.cat([count.view(1), mean.flatten(), covariance.flatten()]))
        counts, means, covariances = every.split([1, mean.numel(), covariance.numel()], dim=1)
        self.count = counts.sum()
        share = counts[:, 0] / self.count
        means, covariances = means.view(-1, *mean.shape), covariances.view(-1, *covariance.shape)
        mean = torch.einsum("r,rqc->qc", share, means)
        covariances = covariances + _square(means - mean, covariances)
        return mean - shift, torch.einsum("r,r...->...", share, covariances)

    def towards_rows(self, mean: Tensor, to_mean: Tensor, to_covariance: Tensor) -> Affine:
        """What rows of z receive through the mean and covariance of `centred`."""
        count = self.count
        if self._is_across:
            ranks.average_([to_mean, to_covariance])
            count = count / ranks.size()
        slope = 2 * to_covariance / count
        is_full = slope.dim() > mean.dim()
        apart = (slope @ mean[..., None]).squeeze(-1) if is_full else slope * mean
        return Affine(to_mean / count - apart, slope)

    def running(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance, a row for each norm."""
        return torch.stack(self._all("running_mean")), torch.stack(self._all("running_var"))

    def update(self, mean: Tensor, variance: Tensor) -> None:
        """Running statistics as torch's BatchNorm keeps them, from (Q, C) each."""
        above = self.count - 1
        above = above.clamp(min=1) if isinstance(above, Tensor) else max(above, 1)
        unbiased = variance * self.count / above
        for name, values in (("running_mean", mean), ("running_var", unbiased)):
            running = self._all(name)
            rows = values.to(running[0].dtype).view(-1, len(running[0]))
            each = len(running) // len(rows)
            torch._foreach_lerp_(running, [x for x in rows for _ in range(each)], self._momentum)
        torch._foreach_add_(self._all("num_batches_tracked"), 1)

    def _all(self, name: str) -> list[Tensor]:
        return [getattr(norm, name) for norm in self.norms]


class Fold:
    """W' and b of one group, and their gradients.

    Args:
        norms: of the group.
        moments: of its inputs, over visible rows; None: norms by running statistics.
        weight: W (Q, C', C).
        mixing: a, (Q, 1) or (Q, C'); None: 1.
        shift: (Q, C), what z was lessened by. BatchNorm would take it away again, and without it
            float32 keeps the digits of E[z zᵀ]; running means alone need it.

    Attributes:
        product: W' (Q, C', C).
        bias: b, (Q, C').
    """

    def __init__(
        self,
        norms: Norms,
        moments: Moments | None,
        weight: Tensor,
        mixing: Tensor | None,
        shift: Tensor | None = None,
    ) -> None:
        self._norms, self._weight, self._mixing, self._mean = norms, weight, mixing, None
        if moments is None:
            self._centre, self._variance = (x.view(len(weight), -1) for x in norms.running())
        else:
            self._mean, covariance = norms.centred(moments, shift)
            self._spread = weight @ covariance
            self._centre = (weight @ self._mean[..., None]).squeeze(-1)
            self._variance = (self._spread * weight).sum(-1).clamp_(min=0)
            seen = self._mean if shift is None else self._mean + shift
            norms.update((weight @ seen[..., None]).squeeze(-1), self._variance)
        self._root = torch.rsqrt(self._variance + norms.eps)
        self._scale = self._root if mixing is None else self._root * mixing
        self.product = self._scale[..., None] * weight
        self.bias = -self._scale * self._centre

    def backward(
        self, to_product: Tensor, to_bias: Tensor, wants_weight: bool, wants_mixing: bool
    ) -> tuple[Affine | None, Tensor | None, Tensor | None]:
        """Gradients of z by way of its moments, of W and of a, from those of W' and b."""
        weight, mean, to_mixing, to_weight = self._weight, self._mean, None, None
        to_scale = (to_product * weight).sum(-1).addcmul_(to_bias, self._centre, value=-1)
        if wants_mixing and self._mixing is not None:
            to_mixing = (to_scale * self._root).sum_to_size(self._mixing.shape)
        if wants_weight:
            to_weight = self._scale[..., None] * to_product
        if mean is None:
            return None, to_weight, to_mixing
        to_centre = -self._scale * to_bias
        to_variance = _through_root(to_scale * self._scale, self._root, self._variance)[..., None]
        if to_weight is not None:
            to_weight.baddbmm_(to_centre[..., None], mean[:, None])
            to_weight.addcmul_(to_variance, self._spread, value=2)
        to_mean = (weight.mT @ to_centre[..., None]).squeeze(-1)
        to_covariance = weight.mT @ (to_variance * weight)
        return self._norms.towards_rows(mean, to_mean, to_covariance), to_weight, to_mixing


class PoolFold:
    """s and b of pools that E edges share, each with a norm and a mixing weight of its own.

    Args:
        norms: Q · E.
        moments: of the Q pools; None: norms by running statistics.
        mixing: a, (Q, E).
        shift: (C,), what the pools were lessened by, see `Fold`.

    Attributes:
        product: s (Q, E, C).
        bias: b (Q, E, C).
    """

    def __init__(
        self, norms: Norms, moments: Moments | None, mixing: Tensor, shift: Tensor | None = None
    ) -> None:
        self._norms, self._mean = norms, None
        if moments is None:
            centre, variance = (x.view(*mixing.shape, -1) for x in norms.running())
        else:
            shift = None if shift is None else shift.expand_as(moments.mean)
            self._mean, variance = norms.centred(moments, shift)
            variance.clamp_(min=0)
            norms.update(self._mean if shift is None else self._mean + shift, variance)
            centre, variance = self._mean[:, None], variance[:, None]
        self._centre, self._variance = centre, variance
        self._root = torch.rsqrt(variance + norms.eps)
        self.product = mixing[..., None] * self._root
        self.bias = -self.product * centre

    def backward(
        self, to_product: Tensor, to_bias: Tensor, wants_mixing: bool
    ) -> tuple[Affine | None, Tensor | None]:
        """Gradients of the pools by way of their moments, and of a, from those of s and b."""
        to_scale = torch.addcmul(to_product, to_bias, self._centre, value=-1)
        to_mixing = (to_scale * self._root).sum(-1) if wants_mixing else None
        if self._mean is None:
            return None, to_mixing
        to_mean = -(to_bias * self.product).sum(1)
        to_scale = (to_scale * self.product).sum(1, keepdim=True)
        to_variance = _through_root(to_scale, self._root, self._variance).squeeze(1)
        return self._norms.towards_rows(self._mean, to_mean, to_variance), to_mixing


def _square(mean: Tensor, like: Tensor) -> Tensor:
    """Products of channels (…, C, C), or of each with itself alone, as `like` has them."""
    return mean[..., None] * mean[..., None, :] if like.dim() > mean.dim() else mean.square()


def _through_root(to_scale: Tensor, root: Tensor, variance: Tensor) -> Tensor:
    """∂v from ∂s ⊙ s; 0 where rounding left no variance."""
    return torch.ops.aten.threshold_backward(to_scale * root.square() * -0.5, variance, 0)
