"""The encoder of the search: images and mixtures in, feature maps F_1, F_2, F_3 out."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mae_nas.backbone import (
    CELL_KINDS,
    Backbone,
    BackbonePlan,
    CellState,
    check_side,
    plan_backbone,
    stem_for,
)
from mae_nas.masking import VisibleMap
from mae_nas.relaxations import Mixture
from mae_nas.spaces import SearchSpace
from mae_nas.supernet.cell import CellMaker, SearchCell
from mae_nas.supernet.reference import ReferenceCell


@dataclass(frozen=True)
class SupernetSize:
    """Width, depth and stem of the supernet.

    Args:
        width: channels of a node in the first stage. DARTS searches with 16.
        depth: cells. DARTS searches with 8.
        stem: see `Stem`; `auto` chooses by the image side.
    """

    width: int = 16
    depth: int = 8
    stem: Literal["auto", "cifar", "small", "imagenet"] = "auto"

    def plan(self, space: SearchSpace, side: int | None) -> BackbonePlan:
        """Where the cells stand for images of `side` pixels; ValueError if they do not fit.

        Without a side, only width and depth are judged.
        """
        stem = stem_for(side or 32) if self.stem == "auto" else self.stem
        concatenated = {kind: len(space.concat) for kind in CELL_KINDS}
        plan = plan_backbone(self.width, self.depth, stem, concatenated)
        if side is not None:
            check_side(side, plan.features[-1].stride)
        return plan


class Supernet(nn.Module):
    """A backbone of search cells (DARTS, Sec. 3.1), up to the last stage in use.

    Args:
        space: the search space.
        channels: of the image.
        stages: feature maps wanted, 1 to 3.
        plan: where the cells stand, from `SupernetSize.plan`.
        make_cell: makes a cell; all implementations are equal, some are faster.

    Shapes:
        image: (B, channels, side, side); with `visible` given, hidden pixels count as 0.
        forward: maps F_1 … F_stages, (B, 4·width·2^i, side/s_i, side/s_i); with `visible` given
        (sparse masking), exactly 0 at hidden sites.
    """

    def __init__(
        self,
        space: SearchSpace,
        channels: int,
        stages: int,
        plan: BackbonePlan,
        make_cell: CellMaker,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(plan, channels, stages, lambda spec: make_cell(space, spec))
        # Much faster on a CPU: depthwise and pooling kernels vectorise over channels.
        self.to(memory_format=torch.channels_last)

    def forward(
        self, image: Tensor, mixtures: Mapping[str, Mixture], visible: VisibleMap | None = None
    ) -> Sequence[Tensor]:
        """Encode; see the class for shapes."""

        def step(cell: nn.Module, before_last: CellState, last: CellState) -> CellState:
            assert isinstance(cell, SearchCell)
            return cell(before_last, last, mixtures[cell.spec.kind], visible)

        if visible is not None:  # whatever lies under the mask, no operation may see it
            image = image.masked_fill(~visible.at(1), 0.0)
        image = image.contiguous(memory_format=torch.channels_last)
        stem = self.backbone.stem(image, visible)
        return self.backbone.run([self._cells[0].enter(state) for state in stem], step)

    def as_reference(self) -> "Supernet":
        """A copy that computes edge by edge: what published costs count."""
        twin = copy.deepcopy(self)
        for place, cell in enumerate(self._cells):
            weights = cell.state_dict()
            plain = ReferenceCell(cell.space, cell.spec).train(cell.training)
            device = next(iter(weights.values())).device
            twin.backbone.cells[place] = plain.to(device, next(cell.parameters()).dtype)
            plain.load_state_dict(weights)
        return twin

    @property
    def implementation(self) -> str:
        """What has computed the cells, for the record."""
        return ", ".join(sorted({cell.implementation for cell in self._cells}))

    @property
    def _cells(self) -> list[SearchCell]:
        return [cell for cell in self.backbone.cells if isinstance(cell, SearchCell)]
