"""Pointwise convolution, BatchNorm and mixing weight as one product.

For y = W z, BatchNorm's statistics follow from the first two moments of its input,

    μ_y = W μ_z,    σ²_y = diag(W Cov(z) Wᵀ),    Cov(z) = E[z zᵀ] − μ_z μ_zᵀ,

so that a · BN(y) = W' z + b with W' = diag(s) W, b = −s ⊙ μ_y and s = a / √(σ²_y + ε): neither y
nor BN(y) nor a · BN(y) ever exists, in the forward pass or for the backward one. A pool is the case
W = I, for which the diagonal of Cov(z) suffices.

What is heavy, moments of z and products with it, is computed elsewhere and differentiated by hand.
The algebra between, on a few matrices C × C, stands here and is differentiated by autograd.
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
        self._momentum = norms[0].momentum or 0.0
        self._is_across = getattr(norms[0], "synchronised", False) and ranks.size() > 1

    def centred(
        self, moments: Moments, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | int]:
        """Mean, covariance and number of rows, those of all ranks if the norms say so.

        The mean lacks this rank's own `shift`, (Q, C).
        """
        mean, second = moments
        is_full = second.dim() > mean.dim()
        covariance = second - (mean[:, :, None] * mean[:, None, :] if is_full else mean.square())
        if not self._is_across:
            return mean, covariance, self.count
        count = torch.as_tensor(self.count, dtype=mean.dtype, device=mean.device)
        shift = torch.zeros_like(mean) if shift is None else shift.to(mean.dtype)
        mean = mean + shift
        every = ranks.gather(torch.cat([count.view(1), mean.flatten(), covariance.flatten()]))
        counts, means, covariances = every.split([1, mean.numel(), covariance.numel()], dim=1)
        total = counts.sum()
        share = counts[:, 0] / total
        means, covariances = means.view(-1, *mean.shape), covariances.view(-1, *covariance.shape)
        mean = torch.einsum("r,rqc->qc", share, means)
        apart = means - mean
        between = apart[..., None] * apart[..., None, :] if is_full else apart.square()
        return mean - shift, torch.einsum("r,r...->...", share, covariances + between), total

    def running(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance, a row for each norm."""
        return torch.stack(self._all("running_mean")), torch.stack(self._all("running_var"))

    @torch.no_grad()
    def update(self, mean: Tensor, variance: Tensor, count: Tensor | int) -> None:
        """Running statistics as torch's BatchNorm keeps them, from (Q, C) each."""
        above = count - 1
        above = above.clamp(min=1) if isinstance(above, Tensor) else max(above, 1)
        unbiased = variance * count / above
        each = len(self.norms) // len(mean)
        for name, values in (("running_mean", mean), ("running_var", unbiased)):
            running = self._all(name)
            news = [row for row in values.to(running[0].dtype) for _ in range(each)]
            torch._foreach_lerp_(running, news, self._momentum)
        torch._foreach_add_(self._all("num_batches_tracked"), 1)

    def _all(self, name: str) -> list[Tensor]:
        return [getattr(norm, name) for norm in self.norms]


class Fold:
    """The algebra of one group and its gradients.

    Args:
        norms: of the group.
        moments: of its inputs, over visible rows; None: norms by running statistics.
        weight: W (Q, C', C); None: the identity.
        mixing: a, (Q, 1), or (Q, E) where W is the identity; None: 1.
        shift: (Q, C), what z was lessened by. BatchNorm would take it away again, and without it
            float32 keeps the digits of E[z zᵀ]; running means alone need it.

    Attributes:
        product: W' (Q, C', C), or s (Q, E, C) where W is the identity.
        bias: b, (Q, C') or (Q, E, C).
    """

    def __init__(
        self,
        norms: Norms,
        moments: Moments | None,
        weight: Tensor | None,
        mixing: Tensor | None,
        shift: Tensor | None = None,
    ) -> None:
        with torch.enable_grad():
            self._moments = moments and Moments(*(m.detach().requires_grad_() for m in moments))
            self._weight, self._mixing = _leaf(weight), _leaf(mixing)
            centre, variance = self._statistics(norms, shift)
            scale = torch.rsqrt(variance + norms.eps)
            if self._weight is None:
                assert self._mixing is not None
                # A row for each pool, or by running statistics one for each edge.
                rows = (len(self._mixing), -1, scale.shape[1])
                self._product = self._mixing[..., None] * scale.view(rows)
                self._bias = -self._product * centre.view(rows)
            else:
                scale = scale if self._mixing is None else scale * self._mixing
                self._product, self._bias = scale[..., None] * self._weight, -scale * centre
        self.product, self.bias = self._product.detach(), self._bias.detach()

    def _statistics(self, norms: Norms, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance of y = W z, (Q, C') each."""
        if self._moments is None:
            return norms.running()
        mean, covariance, count = norms.centred(self._moments, shift)
        if self._weight is None:
            centre, variance = mean, covariance
        else:
            centre = (self._weight @ mean[..., None]).squeeze(-1)
            variance = ((self._weight @ covariance) * self._weight).sum(-1)
        variance = variance.clamp(min=0)
        seen = centre.detach()
        if shift is not None and self._weight is not None:
            seen = seen + (self._weight.detach() @ shift[..., None].to(seen.dtype)).squeeze(-1)
        norms.update(seen, variance.detach(), count)
        return centre, variance

    def backward(
        self, to_product: Tensor, to_bias: Tensor, wants_weight: bool, wants_mixing: bool
    ) -> tuple[Moments | None, Tensor | None, Tensor | None]:
        """Gradients of the moments, of W and of a, from those of W' and b."""
        outputs = [(self._product, to_product), (self._bias, to_bias.to(to_product.dtype))]
        # By running statistics, b may depend on none of them.
        outputs = [(value, to) for value, to in outputs if value.requires_grad]
        wanted = [*(self._moments or ())]
        wanted += [self._weight] if wants_weight and self._weight is not None else []
        wanted += [self._mixing] if wants_mixing and self._mixing is not None else []
        if not wanted:
            return None, None, None
        values, gradients = zip(*outputs, strict=True)
        # Kept for another backward pass: it is small, and goes with the outer graph.
        found = list(torch.autograd.grad(values, wanted, gradients, retain_graph=True))
        to_mixing = found.pop() if wants_mixing and self._mixing is not None else None
        to_weight = found.pop() if wants_weight and self._weight is not None else None
        return Moments(*found) if found else None, to_weight, to_mixing


def _leaf(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().requires_grad_()
