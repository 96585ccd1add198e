"""The seam behind which supernet cells are exchanged: same constructor, same contract."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from mae_nas.backbone import CellSpec, CellState
from mae_nas.masking import VisibleMap
from mae_nas.relaxations import Mixture
from mae_nas.spaces import SearchSpace


class SearchCell(nn.Module, ABC):
    """A cell that holds every candidate of every edge (DARTS, Sec. 2.2).

    Node i is Σ over edges j→i of the edge's mixture; the output concatenates the inner nodes.

    Args:
        space: edges and candidates.
        spec: the cell's place in the backbone.
    """

    def __init__(self, space: SearchSpace, spec: CellSpec) -> None:
        super().__init__()
        self.space = space
        self.spec = spec

    @property
    def implementation(self) -> str:
        """What has computed it, for the record."""
        return "reference"

    @staticmethod
    @abstractmethod
    def enter(image_map: Tensor) -> CellState:
        """The state that stands for one of the stem's dense maps (B, C, H, W)."""

    @abstractmethod
    def forward(
        self, before_last: CellState, last: CellState, mixture: Mixture, visible: VisibleMap | None
    ) -> CellState:
        """The cell's output state; `visible` is None without sparse masking."""


CellMaker = Callable[[SearchSpace, CellSpec], SearchCell]
