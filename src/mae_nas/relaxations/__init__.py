"""Relaxations: how a choice between operations becomes continuous. One file adds a method."""

from mae_nas.relaxations.base import Mixture, Relaxation, relative_entropy
from mae_nas.relaxations.darts import DARTS
from mae_nas.relaxations.fixed import Fixed

__all__ = ["DARTS", "Fixed", "Mixture", "Relaxation", "relative_entropy"]
