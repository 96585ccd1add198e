"""Depthwise convolutions and pools on a CPU by our own kernel, compiled on first use.

The kernel has a plain C interface: without torch's headers it takes seconds to compile.
"""

import ctypes
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from mae_nas.masking import visible_average_pool, visible_max_pool
from mae_nas.supernet.depthwise.compiler import library
from mae_nas.supernet.depthwise.interface import Convolutions, PoolFunction, Pools
from mae_nas.supernet.sites import Sites

NAME = "cpp"
FORMS = frozenset(product((3, 5), (1, 2), (1, 2)))
"""Kernels, dilations and strides."""
POOLS = (visible_max_pool, visible_average_pool)
"""Where no row is hidden."""


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("images", "edges", "height", "width", "channels", "threads")
    ]


class _Matrices(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64) for name in ("rows", "channels", "first", "second", "threads")
    ]


class _Sites(ctypes.Structure):
    _fields_ = [
        ("runs", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("per_image", ctypes.c_int64),
        ("shared", ctypes.c_int64),
    ]


def serves(like: Tensor) -> bool:
    """Whether there is a kernel for tensors of this device, type and width, (M, C)."""
    fits = like.dtype in (torch.float32, torch.float64) and like.shape[-1] % 4 == 0
    return like.device.type == "cpu" and fits and library() is not None


def forward(edges: Convolutions, shift: Tensor | None, out: Sequence[Tensor]) -> None:
    """See the interface."""
    _run(
        "depthwise_forward",
        *_described(edges, edges.form, edges.weight),
        _pointers(edges.x),
        edges.weight.data_ptr(),
        None if shift is None else shift.data_ptr(),
        _pointers(out),
        _strides(out),
    )


def backward(
    edges: Convolutions, gradient: Sequence[Tensor], to_x: Sequence[Tensor], wants_weight: bool
) -> Tensor | None:
    """See the interface."""
    to_weight = torch.empty_like(edges.weight) if wants_weight else None
    _run(
        "depthwise_backward",
        *_described(edges, edges.form, edges.weight),
        _pointers(edges.x),
        edges.weight.data_ptr(),
        _pointers(gradient),
        _strides(gradient),
        _pointers(to_x),
        None if to_weight is None else to_weight.data_ptr(),
    )
    return to_weight


def pool(pools: Pools) -> list[Tensor]:
    """See the interface."""
    x = pools.x
    pooled = [x.new_empty(pools.target.rows, x.shape[1]) for _ in pools.kinds]
    described = _described(pools, (pools.stride,), x)
    _run("pool_forward", *described, x.data_ptr(), *_by_kind(pools.kinds, pooled))
    return pooled


def pool_backward(pools: Pools, gradient: Sequence[Tensor]) -> Tensor:
    """See the interface."""
    x, to_x = pools.x, torch.zeros_like(pools.x)
    # Of one image alone, rows of a channels-first gradient lie next to each other.
    gradient = [each.contiguous() for each in gradient]
    arguments = (x.data_ptr(), *_by_kind(pools.kinds, gradient), to_x.data_ptr())
    _run("pool_backward", *_described(pools, (pools.stride,), x), *arguments)
    return to_x


def combine(
    out: Sequence[Tensor],
    inputs: Sequence[Sequence[Tensor]],
    scale: Tensor,
    bias: Tensor | None,
    adds: bool,
) -> None:
    """See the interface."""
    every = [x.contiguous() for row in inputs for x in row]
    scale, bias = scale.contiguous(), None if bias is None else bias.contiguous()
    shape = _matrices(out[0], len(out), len(inputs[0]))
    numbers = (ctypes.c_int(adds), ctypes.c_int(scale.element_size()))
    offset = None if bias is None else bias.data_ptr()
    _run("combine", shape, *numbers, _pointers(every), scale.data_ptr(), offset, _pointers(out))


def dots(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """See the interface."""
    x, y = [each.contiguous() for each in x], [each.contiguous() for each in y]
    sums = x[0].new_empty(len(x), len(y), x[0].shape[1])
    size = ctypes.c_int(sums.element_size())
    shape = _matrices(x[0], len(x), len(y))
    _run("dots", shape, size, _pointers(x), _pointers(y), sums.data_ptr())
    return sums


def _matrices(like: Tensor, first: int, second: int) -> object:
    threads = torch.get_num_threads()
    return ctypes.byref(_Matrices(*like.shape, first, second, threads))


def _by_kind(kinds: Sequence[PoolFunction], values: Sequence[Tensor]) -> list[int | None]:
    where = {kind: value.data_ptr() for kind, value in zip(kinds, values, strict=True)}
    return [where.get(kind) for kind in POOLS]


def _run(name: str, *arguments: object) -> None:
    loaded = library()
    assert loaded is not None
    converted = [ctypes.c_void_p(a) if a is None or type(a) is int else a for a in arguments]
    if not getattr(loaded, f"mae_nas_{name}")(*converted):
        raise AssertionError(f"no kernel {name} for {arguments[3:7]}")


def _described(given: Convolutions | Pools, form: Sequence[int], like: Tensor) -> list[object]:
    edges = len(like) if isinstance(given, Convolutions) else 0
    source, target = given.source, given.target
    stride = form[-1]
    sides = (-(-source.height // stride), -(-source.width // stride))
    if (target.height, target.width) != sides:  # the kernel trusts it
        raise ValueError(f"maps of {sides} expected, not {(target.height, target.width)}")
    threads = min(torch.get_num_threads(), source.batch)
    shape = _Shape(source.batch, edges, source.height, source.width, like.shape[-1], threads)
    numbers = map(ctypes.c_int, (*form, like.element_size()))
    return [ctypes.byref(shape), _sites(source), _sites(target), *numbers]


def _sites(sites: Sites) -> object:
    runs = sites.runs
    shared = len(runs) == 1
    return ctypes.byref(_Sites(runs.data_ptr(), runs.shape[1], sites.per_image, shared))


def _pointers(tensors: Sequence[Tensor]) -> object:
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def _strides(tensors: Sequence[Tensor]) -> object:
    return (ctypes.c_int64 * len(tensors))(*[tensor.stride(0) for tensor in tensors])
