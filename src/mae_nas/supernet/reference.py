"""The supernet's maths, edge by edge, written to be read: every faster cell must equal this one."""

from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from mae_nas.backbone import CellSpec, CellState, DenseState
from mae_nas.masking import VisibleMap
from mae_nas.relaxations import Mixture
from mae_nas.spaces import SearchSpace
from mae_nas.spaces.primitives import Primitive, preprocessors
from mae_nas.supernet.cell import SearchCell


class MixedOp(nn.Module):
    """All candidates of one edge, weighted: Σ_k w_k · o_k(x) (DARTS, Eq. 2).

    Args:
        candidates: operations by name, in the space's order.
    """

    def __init__(self, candidates: dict[str, Primitive]) -> None:
        super().__init__()
        self.candidates = nn.ModuleDict(candidates)
        self.is_zero = all(candidate.is_zero for candidate in candidates.values())

    def forward(
        self, x: Tensor, weights: tuple[Tensor, ...], before: Tensor | None, after: Tensor | None
    ) -> Tensor:
        """Mix the candidates' outputs by `weights`, K scalars; see `Primitive` for the shapes."""
        terms = (
            weight * candidate(x, before, after)
            for weight, candidate in zip(weights, self.candidates.values(), strict=True)
            if not candidate.is_zero
        )
        return reduce(add, terms)


class ReferenceCell(SearchCell):
    """`SearchCell` as its definition reads."""

    def __init__(self, space: SearchSpace, spec: CellSpec) -> None:
        super().__init__(space, spec)
        self.preprocess0, self.preprocess1 = preprocessors(spec)
        self.edges = nn.ModuleList(
            MixedOp({name: space.make(name, spec.width, self._stride(source)) for name in names})
            for (source, _), names in zip(space.edges, space.primitives(spec.kind), strict=True)
        )

    @staticmethod
    def enter(image_map: Tensor) -> CellState:
        return DenseState(image_map)

    def forward(
        self, before_last: CellState, last: CellState, mixture: Mixture, visible: VisibleMap | None
    ) -> CellState:
        first = visible.at(self.spec.inputs[0].stride) if visible else None
        outer = visible.at(self.spec.stride_in) if visible else None
        inner = visible.at(self.spec.stride_out) if visible else None
        nodes = [
            self.preprocess0(before_last.dense(), first, outer),
            self.preprocess1(last.dense(), outer, outer),
        ]
        for target in self.space.concat:
            terms = (
                self.edges[e](nodes[source], mixture.weights[e], outer if enters else inner, inner)
                for e, source, enters in self.space.incoming(target)
                if not self.edges[e].is_zero
            )
            nodes.append(reduce(add, terms))
        return DenseState(torch.cat([nodes[i] for i in self.space.concat], dim=1))

    def _stride(self, source: int) -> int:
        return 2 if self.spec.is_reduction and source < self.space.inputs else 1
