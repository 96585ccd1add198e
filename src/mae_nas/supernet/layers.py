"""The separable convolutions that leave one node, sorted so that equal forms are neighbours."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from mae_nas.masking import BatchNorm, visible_average_pool, visible_max_pool
from mae_nas.spaces.primitives import DepthwiseSeparable, Pool, Primitive, SepConv
from mae_nas.supernet.depthwise import Form
from mae_nas.supernet.sites import index


@dataclass(frozen=True)
class Layer:
    """A separable convolution whose output is mixed.

    Args:
        slot: its edge, counted among those that leave the node.
        choice: its mixing weight, counted among those of the cell.
        first: the layer before it, of sep_conv.
        last: itself.
    """

    slot: int
    choice: int
    first: DepthwiseSeparable | None
    last: DepthwiseSeparable


def layer_of(slot: int, choice: int, operation: Primitive) -> Layer | None:
    """None: an operation of another kind."""
    if not is_plain(operation):
        return None
    if type(operation) is SepConv:
        return Layer(slot, choice, operation.first, operation.second)
    if type(operation) is DepthwiseSeparable:
        return Layer(slot, choice, None, operation)
    return None


def is_plain(operation: Primitive) -> bool:
    """Whether it is as its own class makes it, in all that the fused cell takes for granted.

    What a maker of the user's has given a bias, another padding or another norm is another
    operation, computed as it says.
    """
    parts = list(operation.modules())
    norms = [part for part in parts if isinstance(part, nn.BatchNorm2d)]
    convolutions = [part for part in parts if isinstance(part, nn.Conv2d)]
    if type(operation) is Pool and operation.pool not in (visible_max_pool, visible_average_pool):
        return False
    return all(map(_is_plain_norm, norms)) and all(map(_is_plain_convolution, convolutions))


def _is_plain_norm(norm: nn.BatchNorm2d) -> bool:
    usual = (norm.eps, norm.momentum) == (1e-5, 0.1)
    return type(norm) is BatchNorm and usual and not norm.affine and norm.track_running_stats


def _is_plain_convolution(conv: nn.Conv2d) -> bool:
    (kernel, width), (dilation, _) = conv.kernel_size, conv.dilation
    centred = conv.padding == (dilation * (kernel // 2),) * 2 and conv.padding_mode == "zeros"
    square = kernel == width and len({*conv.dilation}) == len({*conv.stride}) == 1
    grouped = conv.groups == (1 if kernel == 1 else conv.in_channels)
    return type(conv) is nn.Conv2d and conv.bias is None and square and centred and grouped


class Kind:
    """Depthwise convolutions of one form, neighbours among the members of their group."""

    def __init__(self, form: Form, members: range, layers: Sequence[DepthwiseSeparable]) -> None:
        self.form = form
        self.members = members
        self.convolutions = [layer.depthwise for layer in layers]

    def weight(self, dtype: torch.dtype) -> Tensor:
        """(E, k, k, C)."""
        # A view, not a choice of the only channel: its gradient is one, and DDP can use it.
        stacked = torch.stack([conv.weight for conv in self.convolutions]).flatten(1, 2)
        return stacked.permute(0, 2, 3, 1).to(dtype).contiguous()


def _form(layer: DepthwiseSeparable) -> Form:
    conv = layer.depthwise
    return Form(conv.kernel_size[0], conv.dilation[0], conv.stride[0])


def _kinds(layers: Sequence[DepthwiseSeparable], start: int = 0) -> list[Kind]:
    kinds = []
    for form, same in groupby(layers, _form):
        members = list(same)
        kinds.append(Kind(form, range(start, start := start + len(members)), members))
    return kinds


class SeparableGroup:
    """The layers that leave one node, its members.

    Args:
        layers: in any order.

    Attributes:
        edges: that they are on: slot and number of members.
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        # Chained ones first, and equal forms together: members of a kind are neighbours.
        layers = sorted(layers, key=lambda x: (x.first is None, _form(x.last), x.slot))
        self.firsts = [layer.first for layer in layers if layer.first is not None]
        self.lasts = [layer.last for layer in layers]
        self.choices = tuple(layer.choice for layer in layers)
        chained = len(self.firsts)
        self.kinds = (
            _kinds(self.firsts),
            _kinds(self.lasts[:chained]),
            _kinds(self.lasts[chained:], chained),
        )
        self.slots = tuple(layer.slot for layer in layers)
        self.edges = tuple((slot, self.slots.count(slot)) for slot in sorted(set(self.slots)))
        # Members edge by edge, and where each of them is then.
        self._listed = tuple(sorted(range(len(layers)), key=lambda q: self.slots[q]))
        self._places = tuple(self._listed.index(q) for q in range(len(layers)))

    def stacks(self, z: Sequence[Tensor]) -> list[Tensor]:
        """Each edge's matrix (M, n · C) as (n, M, C), a view."""
        cut = zip(z, self.edges, strict=True)
        return [each.view(len(each), n, -1).transpose(0, 1) for each, (_, n) in cut]

    def members(self, z: Sequence[Tensor]) -> list[Tensor]:
        """Each member's columns (M, C) of its edge's matrix, as views."""
        listed = [member for stack in self.stacks(z) for member in stack]
        return [listed[place] for place in self._places]

    def gathered(self, stacks: Sequence[Tensor]) -> Tensor:
        """What every edge's members have, (n, …), as one tensor in the members' order, (Q, …)."""
        return torch.cat(list(stacks))[index(self._places, stacks[0].device)]

    def by_edge(self, x: Tensor) -> Sequence[Tensor]:
        """The inverse of `gathered`."""
        return x[index(self._listed, x.device)].split([n for _, n in self.edges])
