"""BatchNorm with fixed statistics as part of the convolution before it: the exported network."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mae_nas.backbone import Stem
from mae_nas.masking import BatchNorm
from mae_nas.network.derived import DerivedNetwork
from mae_nas.spaces.primitives import ConvPair, DepthwiseSeparable, FactorizedReduce, ReLUConvBN

_FOLLOWED: Mapping[type[nn.Module], Sequence[str]] = {
    ReLUConvBN: ("conv",),
    FactorizedReduce: ("even", "odd"),
    DepthwiseSeparable: ("pointwise",),
    ConvPair: ("column",),
}
"""Operations, and the convolutions that their `norm` follows."""


class Unchanged(nn.Module):
    """Where a norm stood."""

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:  # noqa: ARG002 - a norm's
        return x


@torch.no_grad()
def folded(network: DerivedNetwork) -> DerivedNetwork:
    """A copy for inference, without the auxiliary head, whose convolutions have biases.

    a · (W z − μ) / √(σ² + ε) + β  =  (s W) z + (β − s μ),  s = a / √(σ² + ε)
    """
    network = copy.deepcopy(network).eval().to(memory_format=torch.contiguous_format)
    network.auxiliary_head = None
    for part in list(network.modules()):
        for kind, names in _FOLLOWED.items():
            if isinstance(part, kind):
                _fold(part, names, "norm")
        if isinstance(part, Stem):
            for number in range(3 if part.is_deep else 1):
                _fold(part, (f"conv{number}",), f"norm{number}")
    return network


def _fold(part: nn.Module, names: Sequence[str], norm_name: str) -> None:
    """Fold a norm into the convolutions, by name, whose outputs lie side by side before it."""
    norm = part.get_submodule(norm_name)
    assert isinstance(norm, BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = norm.bias - scale * norm.running_mean
    convolutions = [part.get_submodule(name) for name in names]
    widths = [len(conv.get_parameter("weight")) for conv in convolutions]
    parts = zip(convolutions, scale.split(widths), bias.split(widths), strict=True)
    for conv, its_scale, its_bias in parts:
        conv.get_parameter("weight").mul_(its_scale[:, None, None, None])
        conv.register_parameter("bias", nn.Parameter(its_bias.clone()))
    part.add_module(norm_name, Unchanged())
