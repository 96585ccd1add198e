"""Relaxations: how a choice between operations becomes continuous. One file adds a method."""

from mae_nas.relaxations.base import Mixture, Relaxation
from mae_nas.relaxations.darts import DARTS

__all__ = ["DARTS", "Mixture", "Relaxation"]
