"""The weight-sharing network that contains every cell of a space."""

from mae_nas.supernet.cell import CellMaker, SearchCell
from mae_nas.supernet.fused import FusedCell
from mae_nas.supernet.reference import ReferenceCell
from mae_nas.supernet.supernet import Supernet, SupernetSize

__all__ = [
    "CellMaker",
    "FusedCell",
    "ReferenceCell",
    "SearchCell",
    "Supernet",
    "SupernetSize",
]
