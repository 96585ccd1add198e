"""Decoders: features to image. One file adds a decoder."""

from mae_nas.decoders.base import Decoder
from mae_nas.decoders.hierarchical import HierarchicalDecoder
from mae_nas.decoders.unet import UNetDecoder

__all__ = ["Decoder", "HierarchicalDecoder", "UNetDecoder"]
