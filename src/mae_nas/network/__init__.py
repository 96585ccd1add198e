"""The found network: what a genotype becomes, to be trained, measured and exported."""

from mae_nas.network.derived import DerivedNetwork, NetworkSize

__all__ = ["DerivedNetwork", "NetworkSize"]
