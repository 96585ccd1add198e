"""A relaxation owns α and turns it into plain mixing weights; nothing below knows its method."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mae_nas.backbone import CELL_KINDS
from mae_nas.spaces import SearchSpace


@dataclass(frozen=True)
class Mixture:
    """Mixing weights of one kind of cell: an edge computes Σ_k ops[e, k] · o_k(x).

    Shapes:
        ops: (E, K), edges in the space's order, candidates in the edge's.
    """

    ops: Tensor

    @cached_property
    def weights(self) -> tuple[tuple[Tensor, ...], ...]:
        """`ops` as scalars, cut once per step and shared by all cells of the kind."""
        return tuple(tuple(row.unbind()) for row in self.ops.unbind())


class Relaxation(nn.Module, ABC):
    """Owns α: one (E, K) parameter per kind of cell, shared by all cells of that kind.

    α starts as 10⁻³ times standard normal noise (DARTS, Sec. 3), in float32 whatever the
    autocast precision (float64 under `64-true`).

    Args:
        space: the search space, and what the supernet computes of it.
    """

    learns = True
    """Whether α has a step at all."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        self.alphas = nn.ParameterDict(
            {kind: nn.Parameter(1e-3 * torch.randn(space.shape(kind))) for kind in CELL_KINDS}
        )

    @abstractmethod
    def mixture(self) -> dict[str, Mixture]:
        """This step's mixing weights per kind of cell."""

    @torch.no_grad()
    def scores(self) -> dict[str, Tensor]:
        """Per kind, the (E, K) strengths that derivation ranks: by default the mixing weights."""
        return {kind: mixture.ops.detach().clone() for kind, mixture in self.mixture().items()}


def relative_entropy(weights: NDArray[np.float64]) -> float:
    """Mean over edges of −Σ w·log w / log K for (E, K) weights: 1 uniform, 0 decided."""
    # An edge that a given cell leaves out has no weight at all, and is as decided as one with 1.
    total = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
    surprise = -(total * np.log(np.maximum(total, 1e-300))).sum(axis=1)
    return float(surprise.mean() / np.log(weights.shape[1]))
