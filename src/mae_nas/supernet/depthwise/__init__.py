"""Depthwise convolutions of all edges that leave one node: one interface, several backends.

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

`choose` says which one serves tensors like a given one.
"""

from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from mae_nas.supernet.depthwise import cpp, plain, triton

__all__ = ["Form", "choose", "cpp", "plain", "serving", "triton"]


class Form(NamedTuple):
    """A depthwise convolution's shape; padding keeps the centre of the kernel on the map."""

    kernel: int
    dilation: int
    stride: int


def serving(backend: ModuleType, form: Form) -> ModuleType:
    """`backend`, or the one that knows every form."""
    return plain if backend is not plain and form not in backend.FORMS else backend


def choose(like: Tensor, allowed: bool = True) -> ModuleType:
    """The fastest backend for tensors (M, C) of this device, type and width."""
    compiled = (backend for backend in (triton, cpp) if allowed and backend.serves(like))
    return next(compiled, plain)
