"""Depthwise convolutions and pools of all edges that leave a node: one interface, several backends.

`interface` says what a backend does, `choose` which one serves tensors like a given one, `serving`
and `pooling` whether it does all that is asked of it.
"""

from types import ModuleType

from torch import Tensor

from mae_nas.supernet.depthwise import cpp, plain, triton
from mae_nas.supernet.depthwise.interface import Convolutions, Form, PoolFunction, Pools

__all__ = [
    "BACKENDS",
    "Convolutions",
    "Form",
    "PoolFunction",
    "Pools",
    "choose",
    "combining",
    "cpp",
    "plain",
    "pooling",
    "serving",
    "triton",
]

BACKENDS = {backend.NAME: backend for backend in (triton, cpp, plain)}
"""The fastest first; the last always works."""


def serving(backend: ModuleType, form: Form) -> ModuleType:
    """`backend`, or the one that knows every form."""
    return plain if backend is not plain and form not in backend.FORMS else backend


def pooling(backend: ModuleType, pools: Pools) -> ModuleType:
    """`backend`, or the one that knows every pool and hidden rows."""
    knows = backend is cpp and pools.source.seen is None and pools.target.seen is None
    return cpp if knows and set(pools.kinds) <= set(cpp.POOLS) else plain


def combining(backend: ModuleType) -> ModuleType:
    """`backend`, or the one that combines matrices."""
    return cpp if backend is cpp else plain


def choose(like: Tensor, allowed: bool = True) -> ModuleType:
    """The fastest backend for tensors (M, C) of this device, type and width."""
    *compiled, always = BACKENDS.values()
    return next((each for each in compiled if allowed and each.serves(like)), always)
