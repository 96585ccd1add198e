"""Depthwise convolutions and pools of all edges that leave a node: one interface, several backends.

A backend is a module with

    forward(form, x, weight, shift, source, target, out)
    backward(form, x, weight, source, target, gradient, to_x, wants_weight) -> Tensor | None

where, for E edges,

    x:        per edge the input, (M, C), contiguous, rows as `source` says; often one for all
    weight:   (E, k, k, C)
    shift:    (E, C), subtracted from the output, or None
    out:      per edge, (M', C), written to; gradient likewise; rows may lie any distance apart
    to_x:     per edge, like x: the gradient is added to it
    returns   the gradient of weight, (E, k, k, C), None unless wanted

and, for pools of the same (M, C) and their (M', C),

    pool(kinds, stride, x, source, target) -> list[Tensor]
    pool_backward(kinds, stride, x, source, target, gradient) -> Tensor

and, for what edges share, channel by channel and for any number of matrices (M, C),

    combine(out, inputs, scale, bias, adds)     out_o (+)= Σ_i scale_oi ⊙ inputs_oi + bias_o
    dots(x, y) -> Tensor                        Σ_rows x_i ⊙ y_j, (X, Y, C), float32 or wider

`choose` says which one serves tensors like a given one, `serving` and `pooling` whether it does all
that is asked of it.
"""

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from mae_nas.supernet.depthwise import cpp, plain, triton
from mae_nas.supernet.sites import Sites

__all__ = [
    "BACKENDS",
    "Form",
    "PoolFunction",
    "choose",
    "combining",
    "cpp",
    "plain",
    "pooling",
    "serving",
    "triton",
]

PoolFunction = Callable[[Tensor, Tensor | None, Tensor | None, int], Tensor]
"""Map, visible sites before and after, stride; see `mae_nas.masking.visible_max_pool`."""


BACKENDS = {backend.NAME: backend for backend in (triton, cpp, plain)}
"""The fastest first; the last always works."""


class Form(NamedTuple):
    """A depthwise convolution's shape; padding keeps the centre of the kernel on the map."""

    kernel: int
    dilation: int
    stride: int


def serving(backend: ModuleType, form: Form) -> ModuleType:
    """`backend`, or the one that knows every form."""
    return plain if backend is not plain and form not in backend.FORMS else backend


def pooling(
    backend: ModuleType, kinds: Iterable[PoolFunction], source: Sites, target: Sites
) -> ModuleType:
    """`backend`, or the one that knows every pool and hidden rows."""
    knows = backend is cpp and source.seen is None and target.seen is None
    return cpp if knows and set(kinds) <= set(cpp.POOLS) else plain


def combining(backend: ModuleType) -> ModuleType:
    """`backend`, or the one that combines matrices."""
    return cpp if backend is cpp else plain


def choose(like: Tensor, allowed: bool = True) -> ModuleType:
    """The fastest backend for tensors (M, C) of this device, type and width."""
    *compiled, always = BACKENDS.values()
    return next((each for each in compiled if allowed and each.serves(like)), always)
