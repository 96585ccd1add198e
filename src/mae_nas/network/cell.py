"""One cell of a found network: the genotype's operations, each on its own edge.

Unlike the supernet's, norms scale and shift, and pools have none (DARTS's evaluation networks).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mae_nas.backbone import CellSpec, CellState, DenseState
from mae_nas.genotype import CellGenotype, Edge
from mae_nas.masking import BatchNorm
from mae_nas.spaces.primitives import Pool, Primitive, Skip, preprocessors

Operations = Mapping[str, Callable[[int, int], Primitive]]
"""Name -> maker(channels, stride), see `spaces.primitives`."""


class PlainPool(Primitive):
    """3 × 3 pooling without a norm."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool, self.stride = pool.pool, pool.stride

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        return self.pool(x, before, after, self.stride)


class _WholeGradient(torch.autograd.Function):
    """The tensor; its gradient as a tensor of its own, in the same layout.

    A concatenation gives each part a slice of its gradient, on which the norm behind it is several
    times slower.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - torch's
        is_last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.layout = torch.channels_last if is_last else torch.contiguous_format
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401 - torch's
        return gradient.contiguous(memory_format=ctx.layout)


class DerivedCell(nn.Module):
    """A cell of the genotype (DARTS, Sec. 2.1).

    Node i is the sum of its edges' outputs; the cell's output concatenates the genotype's nodes.
    Nodes that lead to none of those are left out.

    Args:
        genotype: of the cell.
        spec: the cell's place in the backbone.
        operations: that the genotype names.

    Shapes:
        before_last, last: dense maps as `spec` says; keep: (E, B), what each edge's output is
        multiplied by for each image, or None; E is `len(cell.edges)`.
    """

    def __init__(self, genotype: CellGenotype, spec: CellSpec, operations: Operations) -> None:
        super().__init__()
        self.spec, self.inputs, self.concat = spec, genotype.inputs, genotype.concat
        self.edges = useful_edges(genotype)
        self.preprocess0, self.preprocess1 = map(settled, preprocessors(spec))
        made = [operations[edge.primitive](spec.width, self._stride(edge)) for edge in self.edges]
        self.operations = nn.ModuleList(map(settled, made))
        # An input that no edge reads is computed, as in published figures, and has no gradient.
        read = {edge.source for edge in self.edges}
        self.preprocess0.requires_grad_(0 in read)
        self.preprocess1.requires_grad_(1 in read)

    def forward(self, before_last: CellState, last: CellState, keep: Tensor | None) -> CellState:
        first, second = before_last.dense(), last.dense()
        nodes = {0: self.preprocess0(first, None, None), 1: self.preprocess1(second, None, None)}
        for target in sorted({edge.target for edge in self.edges}):
            terms = [
                self._term(number, nodes[edge.source], keep)
                for number, edge in enumerate(self.edges)
                if edge.target == target and not self.operations[number].is_zero
            ]
            nodes[target] = sum(terms[1:], start=terms[0]) if terms else self._nothing(second)
        outputs = [nodes[node] for node in self.concat]
        if self.training:
            outputs = [_WholeGradient.apply(output) for output in outputs]
        return DenseState(torch.cat(outputs, dim=1))

    def _term(self, number: int, x: Tensor, keep: Tensor | None) -> Tensor:
        operation = self.operations[number]
        y = operation(x, None, None)
        if keep is None or isinstance(operation, Skip):  # an identity is never dropped
            return y
        return y * keep[number, :, None, None, None].to(y.dtype)  # or half precision would end here

    def _nothing(self, last: Tensor) -> Tensor:
        """A node that is fed by `none` alone."""
        ratio = self.spec.stride_out // self.spec.stride_in
        batch, _, height, width = last.shape
        return last.new_zeros(batch, self.spec.width, height // ratio, width // ratio)

    def _stride(self, edge: Edge) -> int:
        return 2 if self.spec.is_reduction and edge.source < self.inputs else 1


def useful_edges(genotype: CellGenotype) -> list[Edge]:
    """The edges from which a path leads to the cell's output, in the genotype's order."""
    useful = set(genotype.concat)
    for edge in sorted(genotype.edges, key=lambda edge: -edge.target):
        if edge.target in useful:
            useful.add(edge.source)
    return [edge for edge in genotype.edges if edge.target in useful]


def settled(operation: Primitive) -> Primitive:
    """A candidate of the search as the found network has it: affine norms, pools without one."""
    if isinstance(operation, Pool):
        return PlainPool(operation)
    for part in operation.modules():
        if isinstance(part, BatchNorm):
            part.affine = True
            part.weight = nn.Parameter(torch.ones(part.num_features))
            part.bias = nn.Parameter(torch.zeros(part.num_features))
    return operation
