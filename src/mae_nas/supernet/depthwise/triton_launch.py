"""Launches of the kernels: what they are told, and how many programs run."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mae_nas.supernet.depthwise import triton_kernels as kernels
from mae_nas.supernet.depthwise.interface import Convolutions

_AT_ONCE = (
    8  # edges; pointers come as a tuple of so many, so that fewer need no binary of their own
)
_BYTES = 32 * 16  # of a warp's part of a program's block: each thread loads 16
_KEEP_ALL = "--register-usage-level=10"  # else ptxas spills a register to fit one more program
_STRIPS = 64  # at most; a number of the device's own would round differently on another


def compute(edges: Convolutions, shift: Tensor | None, out: Sequence[Tensor]) -> None:
    """The backend's `forward`."""
    for few in _launches(len(out), _AT_ONCE):
        _correlate(_some(edges, few), None if shift is None else shift[few], out[few])


def differentiate(
    edges: Convolutions, gradient: Sequence[Tensor], to_x: Sequence[Tensor], wants_weight: bool
) -> Tensor | None:
    """The backend's `backward`."""
    owners = len({to.data_ptr() for to in to_x})
    # What several edges add to belongs to one program, or else to one launch after another.
    at_once = _AT_ONCE if owners in (1, len(to_x)) else 1
    back = edges._replace(x=gradient, source=edges.target, target=edges.source)
    for few in _launches(len(to_x), at_once):
        per = len(to_x[few]) if owners == 1 else 1
        _correlate(_some(back, few), None, to_x[few], per)
    if not wants_weight:
        return None
    to_weight = torch.empty_like(edges.weight)
    for few in _launches(len(to_x), _AT_ONCE):
        to_weight[few] = _tap_sums(_some(edges, few), gradient[few])
    return to_weight


def _launches(edges: int, at_once: int) -> list[slice]:
    return [slice(e, min(e + at_once, edges)) for e in range(0, edges, at_once)]


def _some(edges: Convolutions, few: slice) -> Convolutions:
    return edges._replace(x=edges.x[few], weight=edges.weight[few])


def _correlate(
    edges: Convolutions, shift: Tensor | None, out: Sequence[Tensor], per: int = 0
) -> None:
    """Forward; transposed, and added to `out`, if `per` edges share each of those."""
    weight = edges.weight
    constants: dict[str, Any] = {**_block_constants(edges), "TRANSPOSED": per > 0}
    programs = -(-edges.target.rows // constants["BLOCK"]) * (len(out) // (per or 1))
    with torch.cuda.device_of(weight):
        kernels.correlate[(programs,)](
            *_pointers(edges.x),
            weight,
            weight if shift is None else shift,  # one is read if has_shift
            int(shift is not None),
            *_pointers(out),
            *_described(edges, per or 1),
            **constants,
        )


def _tap_sums(edges: Convolutions, gradient: Sequence[Tensor]) -> Tensor:
    """Gradient of the taps, (E, k, k, C), in the precision of sums."""
    weight, constants = edges.weight, _block_constants(edges)
    blocks = -(-edges.target.rows // constants["BLOCK"])
    per = -(-blocks // _STRIPS)
    strips = -(-blocks // per)
    wide = torch.promote_types(weight.dtype, torch.float32)
    sums = weight.new_empty(strips, *weight.shape, dtype=wide)
    with torch.cuda.device_of(weight):
        kernels.gather_taps[(len(weight) * edges.form.kernel, strips)](
            _pointers(edges.x)[0],
            *_pointers(gradient),
            sums,
            *_described(edges, per),
            **constants,
        )
    return sums.sum(0)


def _block_constants(edges: Convolutions) -> dict[str, Any]:
    """What the kernels are compiled for."""
    form, weight = edges.form, edges.weight
    channels = weight.shape[-1]
    padded = 1 << (channels - 1).bit_length()
    is_double = weight.dtype == torch.float64
    warps = 8 if is_double else 4  # ptxas spills some doubles of the larger programs else
    return {
        "KERNEL": form.kernel,
        "DILATION": form.dilation,
        "STRIDE": form.stride,
        "CHANNELS": channels,
        "PADDED": padded,
        "BLOCK": max(1, warps * _BYTES // (padded * weight.element_size())),
        "SUM": kernels.tl.float64 if is_double else kernels.tl.float32,
        "num_warps": warps,
        "ptx_options": _KEEP_ALL,
    }


def _pointers(rows: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The matrices, and twice the distances of their rows: multiples of 16 all compile alike.

    A tuple's pointers are arguments like any other: nothing is copied to the device for them.
    """
    padded = [*rows, *[rows[0]] * (_AT_ONCE - len(rows))]
    distances = tuple(2 * each.stride(0) for each in padded)
    assert all(distance % 16 == 0 for distance in distances)
    return tuple(padded), distances


def _described(edges: Convolutions, per: int) -> tuple[Any, ...]:
    source, target = edges.source, edges.target
    sides = target.height, target.width, source.height, source.width
    return target.site_of, source.row_of, target.rows, per, len(edges.weight), *sides
