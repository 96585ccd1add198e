"""The separable convolutions that leave one node, sorted so that equal forms are neighbours."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import torch
from torch import Tensor, nn

from mae_nas.masking import visible_average_pool, visible_max_pool
from mae_nas.spaces.primitives import (
    DepthwiseSeparable,
    FactorizedReduce,
    Pool,
    Primitive,
    SepConv,
    Skip,
)
from mae_nas.supernet.depthwise import Form
from mae_nas.supernet.sites import index

_POOLS = (visible_max_pool, visible_average_pool)
_KNOWN = (SepConv, DepthwiseSeparable, Pool, FactorizedReduce, Skip)


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
    """Of an operation that is plain; None: one of another kind."""
    if type(operation) is SepConv:
        return Layer(slot, choice, operation.first, operation.second)
    if type(operation) is DepthwiseSeparable:
        return Layer(slot, choice, None, operation)
    return None


def is_plain(operation: Primitive, channels: int, stride: int) -> bool:
    """Whether it is as its own class makes it for this place, so that its maths is known.

    What a maker of the user's has given a bias, a hook, another norm or another form is another
    operation, computed as it says.
    """
    is_pool = type(operation) is Pool
    if type(operation) not in _KNOWN or (
        is_pool and not any(operation.pool is pool for pool in _POOLS)
    ):
        return False
    made = _as_made(_form_of(operation), channels, stride)
    parts = dict(operation.named_modules())
    return parts.keys() == made.keys() and all(
        is_alike(part, made[name]) for name, part in parts.items()
    )


def _form_of(operation: Primitive) -> tuple[object, ...]:
    """Its class, and what that is given beside channels and stride; () if nothing is made alike."""
    kind = type(operation)
    if isinstance(operation, Pool):
        # Its own stride is in no part of it, but has to be that of the place.
        return kind, operation.pool, operation.stride
    if kind in (FactorizedReduce, Skip):
        return (kind,)
    layer = operation.first if isinstance(operation, SepConv) else operation
    conv = getattr(layer, "depthwise", None)
    if not isinstance(conv, nn.Conv2d) or conv.kernel_size[0] % 2 == 0:
        return ()
    return kind, conv.kernel_size[0], conv.dilation[0]


@cache
def _as_made(form: tuple[object, ...], channels: int, stride: int) -> Mapping[str, nn.Module]:
    """The parts of what a class makes for this place, by name, without storage."""
    made: nn.Module | None = None
    with torch.device("meta"):
        match form:
            case (kind, int(kernel), 1) if kind is SepConv:
                made = SepConv(channels, kernel, stride)
            case (kind, int(kernel), int(dilation)) if kind is DepthwiseSeparable:
                made = DepthwiseSeparable(channels, kernel, stride, dilation)
            case (kind, pool, own) if kind is Pool and own == stride and pool in _POOLS:
                made = Pool(_POOLS[_POOLS.index(pool)], channels, stride)
            case (kind,) if kind is FactorizedReduce and stride == 2:
                made = FactorizedReduce(channels, channels)
            case (kind,) if kind is Skip and stride == 1:
                made = Skip()
            case _:
                pass
    return {} if made is None else dict(made.named_modules())


def is_alike(part: nn.Module, made: nn.Module) -> bool:
    """Of the same class, numbers and parameters, and with nothing of its own in between."""
    named = [
        {n for n, value in (*each._parameters.items(), *each._buffers.items()) if value is not None}
        for each in (part, made)
    ]
    return is_bare(part, made) and part.extra_repr() == made.extra_repr() and named[0] == named[1]


def is_bare(part: nn.Module, made: nn.Module) -> bool:
    """Of the same class, and with nothing of its own in between."""
    hooks = (part._forward_pre_hooks, part._forward_hooks)
    hooks += (part._backward_pre_hooks, part._backward_hooks)
    is_own = bool({"forward", "_conv_forward"} & vars(part).keys())
    return type(part) is type(made) and not is_own and not any(hooks)


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
