"""The network of a genotype (DARTS, Sec. 3.2): stem, cells, pooled features, linear classifier."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mae_nas.backbone import (
    Backbone,
    BackbonePlan,
    CellState,
    DenseState,
    StemName,
    check_side,
    plan_backbone,
)
from mae_nas.checks import Checked, raise_all
from mae_nas.genotype import Genotype
from mae_nas.network.cell import DerivedCell, Operations
from mae_nas.network.encoder import Encoder
from mae_nas.network.heads import AuxiliaryHead, pooled
from mae_nas.spaces.primitives import PRIMITIVES

SIDES: Mapping[StemName, int] = {"cifar": 32, "small": 64, "imagenet": 224}
"""Of the images that a stem is meant for, in pixels, where nobody says another."""
WIDEST, DEEPEST = 4096, 256
"""Channels and cells that are still somebody's wish."""


@dataclass(frozen=True)
class NetworkSize(Checked):
    """Width, depth, stem and heads of a found network.

    Args:
        width: channels of a node in the first stage; DARTS has 36 on CIFAR, 48 on ImageNet.
        depth: cells; DARTS has 20 on CIFAR, 14 on ImageNet.
        stem: see `Stem`.
        auxiliary: whether training has a second head, on the second reduction cell.
    """

    width: int = 36
    depth: int = 20
    stem: StemName = "cifar"
    auxiliary: bool = True

    def _problems(self) -> Iterator[str]:
        if self.stem not in ("cifar", "small", "imagenet"):
            yield f"stem {self.stem!r}: must be cifar, small or imagenet"
        if not 3 <= self.depth <= DEEPEST:
            yield f"depth {self.depth}: must be 3, a cell for each resolution, to {DEEPEST}"
        if not 2 <= self.width <= WIDEST or self.width % 2:
            near = min(max(2, self.width + self.width % 2), WIDEST)
            yield f"width {self.width}: must be even, from 2 to {WIDEST}, e.g. {near}"

    def plan(self, genotype: Genotype, side: int) -> BackbonePlan:
        """Where the cells stand for images of `side` pixels; ValueError if they do not fit."""
        concatenated = {kind: len(cell.concat) for kind, cell in genotype.cells.items()}
        plan = plan_backbone(self.width, self.depth, self.stem, concatenated)
        check_side(side, plan.features[-1].stride)
        return plan


class Scores(NamedTuple):
    """Class scores (B, classes), and those of the auxiliary head, None without one."""

    main: Tensor
    auxiliary: Tensor | None


class DerivedNetwork(Encoder):
    """A convolutional network made of a genotype's two cells.

    Args:
        genotype: any number of edges a node, any concatenation, two inputs.
        size: of the network.
        channels: of the image.
        side: of the image, pixels.
        classes: number of scores; 0 for features alone.
        operations: that the genotype may name.

    Shapes:
        image: (B, channels, side, side)  ->  scores (B, classes).

    Raises:
        ValueError: an operation is not known, or the sizes do not fit.
    """

    def __init__(
        self,
        genotype: Genotype,
        size: NetworkSize,
        channels: int,
        side: int,
        classes: int,
        operations: Operations = PRIMITIVES,
    ) -> None:
        super().__init__()
        raise_all(_problems(genotype, operations))
        self.genotype, self.size = genotype, size
        plan = size.plan(genotype, side)
        self.feature_info = plan.features
        self.backbone = Backbone(
            _with_auxiliary(plan) if size.auxiliary else plan,
            channels,
            4 if size.auxiliary else 3,
            lambda spec: DerivedCell(genotype.cells[spec.kind], spec, operations),
        )
        last, self.classes = plan.features[-1], classes
        self.classifier = nn.Linear(last.channels, classes) if classes else nn.Identity()
        self.auxiliary_head = None
        if size.auxiliary and classes:
            info = plan.outputs[_auxiliary_cell(plan)]
            cells = side // info.stride
            is_normed_twice = size.stem != "imagenet"
            self.auxiliary_head = AuxiliaryHead(info.channels, cells, classes, is_normed_twice)
        # Much faster on a CPU, as in the supernet, and with tensor cores.
        self.layout = torch.channels_last
        self.to(memory_format=self.layout)

    @property
    def paths(self) -> int:
        """Edges of all cells, which drop path may drop."""
        return sum(len(cell.edges) for cell in self.cells)

    @property
    def cells(self) -> list[DerivedCell]:
        return [cell for cell in self.backbone.cells if isinstance(cell, DerivedCell)]

    def maps(self, image: Tensor) -> Sequence[Tensor]:
        maps = self._maps(image, None)
        return [*maps[:2], maps[-1]]

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.features(image))

    def scores(self, image: Tensor, keep: Tensor | None) -> Scores:
        """Those of both heads, with paths dropped: what training needs.

        Shapes:
            keep: (paths, B), what the output of each edge is multiplied by; None: nothing dropped.
        """
        maps = self._maps(image, keep)
        auxiliary = None if self.auxiliary_head is None else self.auxiliary_head(maps[2])
        return Scores(self.classifier(pooled(maps[-1])), auxiliary)

    def _maps(self, image: Tensor, keep: Tensor | None) -> Sequence[Tensor]:
        """At the taps of the backbone."""
        numbers = [len(cell.edges) for cell in self.cells]
        kept = iter([None] * len(numbers) if keep is None else keep.split(numbers))

        def step(cell: nn.Module, before_last: CellState, last: CellState) -> CellState:
            assert isinstance(cell, DerivedCell)
            return cell(before_last, last, next(kept))

        image = image.contiguous(memory_format=self.layout)
        stem = self.backbone.stem(image, None)
        return self.backbone.run([DenseState(state) for state in stem], step)


def _auxiliary_cell(plan: BackbonePlan) -> int:
    """The second reduction cell."""
    return plan.taps[1] + 1


def _with_auxiliary(plan: BackbonePlan) -> BackbonePlan:
    first, second, last = plan.taps
    return replace(plan, taps=(first, second, _auxiliary_cell(plan), last))


def _problems(genotype: Genotype, operations: Operations) -> Iterator[str]:
    for kind, cell in genotype.cells.items():
        if cell.inputs != 2:
            yield f"genotype: {kind} cell: has {cell.inputs} inputs; cells of a network have 2"
        for edge in cell.edges:
            if edge.primitive not in operations:
                known = ", ".join(operations)
                yield f"genotype: {kind} cell: {edge}: no such operation; known: {known}"
