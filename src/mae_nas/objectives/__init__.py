"""Objectives: what the search minimises. One file adds a training signal."""

from mae_nas.objectives.base import Encode, Objective
from mae_nas.objectives.reconstruction import Reconstruction

__all__ = ["Encode", "Objective", "Reconstruction"]
