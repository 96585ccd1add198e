"""Several processes, one search: the few things that ranks tell each other.

Alone, a process is rank 0 of 1, and every function here changes and returns what it was given.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx


class RanksDifferError(RuntimeError):
    """What all ranks should hold alike is not alike."""


_is_alone = False


def size() -> int:
    """How many ranks share the run."""
    return dist.get_world_size() if dist.is_initialized() and not _is_alone else 1


def index() -> int:
    """Which of them this process is."""
    return dist.get_rank() if dist.is_initialized() and not _is_alone else 0


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process shares nothing: the others may have ended."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def gather(local: Tensor) -> Tensor:
    """The ranks' tensors of one shape, stacked, (ranks, ...); gradients go back to their ranks."""
    return local[None] if size() == 1 else _Gather.apply(local)


class _Gather(torch.autograd.Function):
    """One collective each way; torch's own needs a reduce-scatter, which gloo has not."""

    @staticmethod
    def forward(ctx: FunctionCtx, local: Tensor) -> Tensor:  # noqa: ARG004 - autograd's
        every = [torch.empty_like(local) for _ in range(size())]
        dist.all_gather(every, local.contiguous())
        return torch.stack(every)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:  # noqa: ARG004 - autograd's
        total = gradients[0].clone(memory_format=torch.contiguous_format)  # others hold it too
        dist.all_reduce(total)
        return total[index()]


@torch.no_grad()
def average_(tensors: Sequence[Tensor]) -> None:
    """Replace floating-point tensors by their mean over the ranks, all in one collective."""
    if size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / size()).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def total(*numbers: float) -> list[float]:
    """The sum of each number over the ranks."""
    return _reduced(torch.tensor(numbers, dtype=torch.float64), dist.ReduceOp.SUM)


def maximum(*numbers: int) -> list[int]:
    """The largest of each number over the ranks: what any of them wants, all do."""
    return [int(number) for number in _reduced(torch.tensor(numbers), dist.ReduceOp.MAX)]


def _reduced(numbers: Tensor, how: dist.ReduceOp.RedOpType) -> list[float]:
    """Waits for the other ranks, but never for a device."""
    if size() > 1 and dist.get_backend() == "gloo":
        dist.all_reduce(numbers, how)
    elif size() > 1:
        dist.all_reduce(numbers, how, group=_host_group())
    return numbers.tolist()


@cache
def _host_group() -> dist.ProcessGroup:
    """Ranks talking through host memory: NCCL only knows the device's."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # every rank is a member
    return group


def check_equal(tensors: Sequence[Tensor], what: str) -> None:
    """RanksDifferError naming the first rank whose tensors are not bit for bit those of rank 0."""
    if size() == 1:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    every = gather(flat).view(torch.uint8)  # as bits, so that a NaN is itself
    for rank, other in enumerate(every):
        if not torch.equal(other, every[0]):
            raise RanksDifferError(f"{what} of rank {rank} differs from that of rank 0")
