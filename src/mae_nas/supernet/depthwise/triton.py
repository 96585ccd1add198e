"""Depthwise convolutions on a GPU, all edges of one form in one launch; not measured on a GPU.

What was compiled is compared with torch's own once, on first use of a form, type and width: a step
can be captured after it has run. With TRITON_INTERPRET=1, CPU tensors are served too, slowly.
"""

import functools
import logging
import math
import os
from collections.abc import Callable, Sequence
from itertools import product
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mae_nas.supernet.depthwise import plain
from mae_nas.supernet.sites import Sites

if TYPE_CHECKING:
    from mae_nas.supernet.depthwise import Form

log = logging.getLogger("mae_nas")

NAME = "triton"
FORMS = set(product((3, 5), (1, 2), (1, 2)))
"""Kernels, dilations and strides; less those found to fail here."""

_TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}
"""Of a small example, as fractions of its largest values."""


def serves(like: Tensor) -> bool:
    """Whether there are kernels for tensors of this device, type and width, (M, C)."""
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    is_here = like.device.type == "cuda" or (is_interpreted and like.device.type == "cpu")
    fits = like.dtype in _TOLERANCES and like.shape[-1] % 8 == 0
    return is_here and fits and _launch() is not None


@functools.cache
def _launch() -> ModuleType | None:
    """None where torch came without triton, told in one line."""
    try:
        from mae_nas.supernet.depthwise import triton_launch
    except ImportError as error:
        log.info("depthwise convolutions by torch, edge by edge: %s", error)
        return None
    return triton_launch


def forward(
    form: "Form",
    x: Sequence[Tensor],
    weight: Tensor,
    shift: Tensor | None,
    source: Sites,
    target: Sites,
    out: Sequence[Tensor],
) -> None:
    """See the package."""
    compute = _chosen(form, weight, source, target)[0]
    compute(form, x, weight, shift, source, target, out)


def backward(
    form: "Form",
    x: Sequence[Tensor],
    weight: Tensor,
    source: Sites,
    target: Sites,
    gradient: Sequence[Tensor],
    to_x: Sequence[Tensor],
    wants_weight: bool,
) -> Tensor | None:
    """See the package."""
    differentiate = _chosen(form, weight, source, target)[1]
    return differentiate(form, x, weight, source, target, gradient, to_x, wants_weight)


_Passes = tuple[Callable[..., None], Callable[..., Tensor | None]]


def _chosen(form: "Form", weight: Tensor, source: Sites, target: Sites) -> _Passes:
    packed = source.is_packed, target.is_packed
    return _passes(form, weight.dtype, weight.device, weight.shape[-1], packed)


@functools.cache
def _passes(
    form: "Form", dtype: torch.dtype, device: torch.device, channels: int, packed: tuple[bool, bool]
) -> _Passes:
    """Ours, if they compile and agree with torch's: one answer for each binary."""
    launch, theirs = _launch(), (plain.forward, plain.backward)
    assert launch is not None
    if form not in FORMS:
        return theirs
    ours = launch.compute, launch.differentiate
    try:
        problem = _difference(ours, form, dtype, device, channels, packed)
    except Exception as error:  # noqa: BLE001 - compilers and drivers raise what they like
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    if problem:
        FORMS.discard(form)
        log.info("depthwise convolutions %s by torch, not by triton: %s", tuple(form), problem)
    return theirs if problem else ours


def _difference(
    ours: _Passes,
    form: "Form",
    dtype: torch.dtype,
    device: torch.device,
    channels: int,
    packed: tuple[bool, bool],
) -> str:
    """What is wrong, in words, by torch in float64."""

    def values(*shape: int) -> Tensor:  # no random ones: a run's stream is its own
        steps = torch.arange(math.prod(shape), dtype=torch.float64, device=device)
        return (steps * (1 + math.sqrt(len(shape)))).sin().view(shape).to(dtype)

    source, target = _example(form, device, packed)
    x, weight = values(source.rows, channels), values(2, form.kernel, form.kernel, channels)
    shift, gradients = values(2, channels), values(target.rows, 3, channels)
    given = x, weight, shift, gradients[:, 0], gradients[:, 2]
    found = _results(ours, form, source, target, *given)
    wanted = _results(
        (plain.forward, plain.backward), form, source, target, *[each.double() for each in given]
    )
    errors = [
        (one - other).abs().max() / other.abs().max()
        for one, other in zip(found, wanted, strict=True)
    ]
    error = torch.stack(errors).max().item()
    return "" if error <= _TOLERANCES[dtype] else f"results differ by {error:.1e} in {dtype}"


def _example(form: "Form", device: torch.device, packed: tuple[bool, bool]) -> tuple[Sites, Sites]:
    """Two images that show two corners each."""
    side = torch.arange(8, device=device) // 4
    same = side[:, None] == side
    visible = torch.stack([same, ~same])[:, None]
    coarse = visible[:, :, :: form.stride, :: form.stride]
    source, target = (
        Sites(2, seen.shape[2], seen.shape[3], seen, seen[0].numel() // 2 if is_packed else None)
        for seen, is_packed in zip((visible, coarse), packed, strict=True)
    )
    return source, target


def _results(
    passes: _Passes, form: "Form", source: Sites, target: Sites, *given: Tensor
) -> list[Tensor]:
    """Outputs and gradients of two edges that share their input."""
    x, weight, shift, *gradients = given
    out = [torch.empty_like(gradient) for gradient in gradients]
    to_x = torch.ones_like(x)
    passes[0](form, [x, x], weight, shift, source, target, out)
    to_weight = passes[1](form, [x, x], weight, source, target, gradients, [to_x, to_x], True)
    assert to_weight is not None
    return [*out, to_x, to_weight]
