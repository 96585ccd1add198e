"""What a backend does, and what it is told.

A backend is a module with

    forward(edges, shift, out)
    backward(edges, gradient, to_x, wants_weight) -> Tensor | None

where, for `Convolutions` on E edges,

    shift:    (E, C), subtracted from the output, or None
    out:      per edge, (M', C), written to; gradient likewise; rows may lie any distance apart
    to_x:     per edge, like x: the gradient is added to it
    returns   the gradient of weight, (E, k, k, C), None unless wanted

and, for `Pools`,

    pool(pools) -> list[Tensor]                 of each kind, (M', C)
    pool_backward(pools, gradient) -> Tensor    of x; gradient: of each kind, (M', C)

and, for what edges share, channel by channel and for any number of matrices (M, C),

    combine(out, inputs, scale, bias, adds)     out_o (+)= Σ_i scale_oi ⊙ inputs_oi + bias_o
    dots(x, y) -> Tensor                        Σ_rows x_i ⊙ y_j, (X, Y, C), float32 or wider

Those that do not do all of this say what they do: FORMS, POOLS, `serves`; see the package.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from mae_nas.supernet.sites import Sites

PoolFunction = Callable[[Tensor, Tensor | None, Tensor | None, int], Tensor]
"""Map, visible sites before and after, stride; see `mae_nas.masking.visible_max_pool`."""


class Form(NamedTuple):
    """A depthwise convolution's shape; padding keeps the centre of the kernel on the map."""

    kernel: int
    dilation: int
    stride: int


class Convolutions(NamedTuple):
    """Depthwise convolutions of one form, one on each of E edges.

    Args:
        form: of all.
        x: per edge the input, (M, C), contiguous; often one for all.
        weight: (E, k, k, C).
        source: what the M rows of an input stand for.
        target: what the M' rows of an output stand for.
    """

    form: Form
    x: Sequence[Tensor]
    weight: Tensor
    source: Sites
    target: Sites


class Pools(NamedTuple):
    """Pools of one stride that read one matrix, x (M, C); sites as of `Convolutions`."""

    kinds: Sequence[PoolFunction]
    stride: int
    x: Tensor
    source: Sites
    target: Sites
