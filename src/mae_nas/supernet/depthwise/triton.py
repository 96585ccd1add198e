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

import torch
from torch import Tensor

from mae_nas.supernet.depthwise import plain
from mae_nas.supernet.depthwise.interface import Convolutions, Form
from mae_nas.supernet.sites import Sites

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


def forward(edges: Convolutions, shift: Tensor | None, out: Sequence[Tensor]) -> None:
    """See the interface."""
    _chosen(edges)[0](edges, shift, out)


def backward(
    edges: Convolutions, gradient: Sequence[Tensor], to_x: Sequence[Tensor], wants_weight: bool
) -> Tensor | None:
    """See the interface."""
    return _chosen(edges)[1](edges, gradient, to_x, wants_weight)


_Passes = tuple[Callable[..., None], Callable[..., Tensor | None]]


def _chosen(edges: Convolutions) -> _Passes:
    weight, packed = edges.weight, (edges.source.is_packed, edges.target.is_packed)
    return _passes(edges.form, weight.dtype, weight.device, weight.shape[-1], packed)


@functools.cache
def _passes(
    form: Form, dtype: torch.dtype, device: torch.device, channels: int, packed: tuple[bool, bool]
) -> _Passes:
    """Ours, if they compile and agree with torch's: one answer for each binary."""
    launch, theirs = _launch(), (plain.forward, plain.backward)
    assert launch is not None
    if form not in FORMS:
        return theirs
    ours = launch.compute, launch.differentiate
    try:
        problem = _difference(ours, *_example(form, dtype, device, channels, packed))
    except Exception as error:  # noqa: BLE001 - compilers and drivers raise what they like
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    if problem:
        FORMS.discard(form)
        log.info("depthwise convolutions %s by torch, not by triton: %s", tuple(form), problem)
    return theirs if problem else ours


def _example(
    form: Form, dtype: torch.dtype, device: torch.device, channels: int, packed: tuple[bool, bool]
) -> tuple[Convolutions, Tensor, list[Tensor]]:
    """Two edges that share two images, which show two corners each; shift and gradients."""

    def values(*shape: int) -> Tensor:  # no random ones: a run's stream is its own
        steps = torch.arange(math.prod(shape), dtype=torch.float64, device=device)
        return (steps * (1 + math.sqrt(len(shape)))).sin().view(shape).to(dtype)

    side = torch.arange(8, device=device) // 4
    same = side[:, None] == side
    visible = torch.stack([same, ~same])[:, None]
    coarse = visible[:, :, :: form.stride, :: form.stride]
    source, target = (
        Sites(2, seen.shape[2], seen.shape[3], seen, seen[0].numel() // 2 if is_packed else None)
        for seen, is_packed in zip((visible, coarse), packed, strict=True)
    )
    x, weight = values(source.rows, channels), values(2, form.kernel, form.kernel, channels)
    gradients = values(target.rows, 3, channels)[:, ::2]
    edges = Convolutions(form, [x, x], weight, source, target)
    return edges, values(2, channels), list(gradients.unbind(1))


def _difference(
    ours: _Passes, edges: Convolutions, shift: Tensor, gradients: Sequence[Tensor]
) -> str:
    """What is wrong, in words, by torch in float64."""
    x, weight, dtype = edges.x[0].double(), edges.weight.double(), edges.weight.dtype
    exact = edges._replace(x=[x, x], weight=weight), shift.double(), [g.double() for g in gradients]
    found = _results(ours, edges, shift, gradients)
    wanted = _results((plain.forward, plain.backward), *exact)
    errors = [
        (one - other).abs().max() / other.abs().max()
        for one, other in zip(found, wanted, strict=True)
    ]
    error = torch.stack(errors).max().item()
    return "" if error <= _TOLERANCES[dtype] else f"results differ by {error:.1e} in {dtype}"


def _results(
    passes: _Passes, edges: Convolutions, shift: Tensor, gradients: Sequence[Tensor]
) -> list[Tensor]:
    """Outputs and gradients."""
    out = [torch.empty_like(gradient) for gradient in gradients]
    to_x = torch.ones_like(edges.x[0])
    passes[0](edges, shift, out)
    to_weight = passes[1](edges, gradients, [to_x, to_x], True)
    assert to_weight is not None
    return [*out, to_x, to_weight]
