"""What a network costs: parameters, multiply-adds, and what training it keeps in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mae_nas.genotype import Genotype
from mae_nas.network.cell import Operations
from mae_nas.network.derived import WIDEST, DerivedNetwork, NetworkSize
from mae_nas.spaces.primitives import PRIMITIVES

CONVENTIONS = {
    "thop_without_norms": "macs and 4 for each output of an average pool: thop of 2019, norms off",
    "thop": "the same and 4 for each value that a norm reads: thop of 2019 as it came",
    "ptflops": "macs, 2 for each value that a norm reads, 1 for each that ReLU or a pool does",
}
"""Other counts of the literature, see `count_operations`."""


def count_parameters(module: nn.Module) -> int:
    """Values of all parameters of `module`, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def count_multiply_adds(run: Callable[[], Tensor | object]) -> int:
    """Multiply-adds of the convolutions and linear layers in one call of `run`.

    torch counts two operations for each; pools, norms and element-wise work count as nothing, the
    convention of most published figures.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def kept_bytes(run: Callable[[], Tensor], weights: Iterable[Tensor]) -> int:
    """What one forward pass keeps for its gradients, `weights` themselves left out.

    That is what torch saves, and what functions of ours hold beside.

    Args:
        run: returns a tensor that depends on the weights.
        weights: known already.
    """
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        # A tensor that a node saves and gives would hold the node, and so the graph, for ever.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    for tensor in _held_by(result.grad_fn):
        keep(tensor)
    del result
    return sum(held.values())


def _held_by(node: object) -> Iterator[Tensor]:
    """Tensors in the attributes of the graph's nodes, at any depth."""
    seen: set[int] = set()
    waiting = [node]
    while waiting:
        value = waiting.pop()
        if value is None or id(value) in seen or isinstance(value, nn.Module):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif type(value).__module__.startswith("mae_nas.") or hasattr(value, "next_functions"):
            waiting += vars(value).values() if hasattr(value, "__dict__") else ()
            waiting += [each for each, _ in getattr(value, "next_functions", ())]


@dataclass(frozen=True)
class Complexity:
    """Of one network, for one image.

    Args:
        params: without the auxiliary head, which is not part of the network once it is trained.
        params_with_aux: with it.
        macs: multiply-adds of convolutions and linear layers.
        conventions: see `CONVENTIONS`.
    """

    params: int
    params_with_aux: int
    macs: int
    conventions: dict[str, int]


@dataclass(frozen=True)
class Place:
    """Where a genotype is to work.

    Args:
        size: of the network.
        channels: of the image.
        side: of the image, pixels.
        classes: number of scores.
    """

    size: NetworkSize
    channels: int
    side: int
    classes: int

    def network(self, genotype: Genotype, operations: Operations = PRIMITIVES) -> DerivedNetwork:
        """The genotype's network there, not trained."""
        return DerivedNetwork(
            genotype, self.size, self.channels, self.side, self.classes, operations
        )


def measure_complexity(genotype: Genotype, place: Place) -> Complexity:
    """Of the genotype's network at `place`."""
    return complexity_of(lambda: place.network(genotype), place.channels, place.side)


@torch.no_grad()
def complexity_of(make: Callable[[], nn.Module], channels: int, side: int) -> Complexity:
    """Count by shapes alone: nothing is computed.

    Args:
        make: makes the network; an `auxiliary_head` is counted apart.
        channels: of the image.
        side: of the image, pixels.
    """
    with torch.device("meta"):
        network = make().eval()
        image = torch.empty(1, channels, side, side)
        with _Elements() as counted:
            macs = count_multiply_adds(lambda: network(image))
    head = getattr(network, "auxiliary_head", None) or nn.Identity()
    both = count_parameters(network)
    with_pools = macs + 4 * counted.averaged
    return Complexity(
        params=both - count_parameters(head),
        params_with_aux=both,
        macs=macs,
        conventions={
            "thop_without_norms": with_pools,
            "thop": with_pools + 4 * counted.normed,
            "ptflops": macs + 2 * counted.normed + counted.rectified + counted.pooled,
        },
    )


def widest(genotype: Genotype, place: Place, max_macs: float) -> Place:
    """The place at the largest even width at which the network has at most `max_macs`.

    Raises:
        ValueError: not even the narrowest has.
    """

    def at(width: int) -> Place:
        return replace(place, size=replace(place.size, width=width))

    def fits(width: int) -> bool:
        return measure_complexity(genotype, at(width)).macs <= max_macs

    low, high = 0, 2
    while high <= WIDEST and fits(high):
        low, high = high, min(2 * high, WIDEST + 2)
    while high - low > 2:
        middle = (low + high) // 4 * 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if low == 0:
        least = measure_complexity(genotype, at(2)).macs / 1e6
        raise ValueError(
            f"max_macs {max_macs / 1e6:g}: at width 2 the network has {least:.1f} M already; "
            "allow more, or lessen network.depth or side"
        )
    return at(low)


class _Elements(TorchDispatchMode):
    """Counts values that norms, ReLUs and pools read, and that average pools of windows write."""

    normed = rectified = pooled = averaged = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's
        del types
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if "batch_norm" in name:
            self.normed += args[0].numel()
        elif name == "relu":
            self.rectified += args[0].numel()
        elif "pool" in name or name == "mean":
            self.pooled += args[0].numel()
            self.averaged += result.numel() if name == "avg_pool2d" else 0
        return result
