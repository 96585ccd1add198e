"""Search spaces: which cells exist. One file adds a space, its operations included."""

from mae_nas.spaces.base import SearchSpace
from mae_nas.spaces.darts import S0, S1, S2, S3, S4

__all__ = ["S0", "S1", "S2", "S3", "S4", "SearchSpace"]
