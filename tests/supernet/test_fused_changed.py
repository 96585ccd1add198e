"""A fused cell whose parts are changed after it was built."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from mae_nas.backbone import CELL_KINDS
from mae_nas.masking import BatchNorm, visible_average_pool
from mae_nas.relaxations import Mixture
from mae_nas.spaces import S0
from mae_nas.spaces.primitives import Primitive, ReLUConvBN
from mae_nas.supernet import Supernet

Both = Callable[..., tuple[Supernet, Supernet]]
Passes = Callable[..., tuple[list[Tensor], list[Tensor]]]


class Sine(Primitive):
    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        del before, after
        return x.sin()


CHANGED = {"momentum": None, "eps": 1.0, "affine": True, "training": False}


def with_changed(net: Supernet, changed: str, which: slice = slice(None)) -> list[Tensor]:
    """The features, where so many norms of the first cell's edges are changed."""
    norms = [part for part in net.backbone.cells[0].edges.modules() if type(part) is BatchNorm]
    for norm in norms[which]:
        setattr(norm, changed, CHANGED[changed])
    torch.manual_seed(4)
    mixture = Mixture(torch.randn(S0().shape("normal")).double())
    return net(torch.randn(2, 3, 8, 8).double(), dict.fromkeys(CELL_KINDS, mixture))


@pytest.mark.parametrize(
    ("changed", "which"),
    [
        *((name, slice(3, 4)) for name in CHANGED),
        *((n, slice(None)) for n in ("momentum", "affine")),
    ],
)
def test_norms_that_were_changed_are_refused(both: Both, changed: str, which: slice) -> None:
    _, fused = both()
    with pytest.raises(RuntimeError, match="use efficiency=reference"):
        with_changed(fused, changed, which)


@pytest.mark.parametrize("changed", ["eps", "training"])
def test_norms_that_were_changed_alike_are_the_references(both: Both, changed: str) -> None:
    features = [with_changed(net, changed) for net in both()]
    for ours, theirs in zip(*features, strict=True):
        assert (ours - theirs).abs().max() < 1e-10


def another_norm(candidates: dict[str, Any]) -> None:
    pool = candidates["max_pool_3x3"]
    pool.norm = torch.nn.BatchNorm2d(8).double()
    pool.norm.forward = lambda x, _visible: x


def another_convolution(candidates: dict[str, Any]) -> None:
    conv = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=True)
    candidates["sep_conv_3x3"].first.depthwise = conv.double()


def another_candidate(candidates: dict[str, Any]) -> None:
    candidates["dil_conv_3x3"] = Sine()


def another_forward(candidates: dict[str, Any]) -> None:
    forward = candidates["sep_conv_5x5"].forward
    candidates["sep_conv_5x5"].forward = lambda *given: -forward(*given)


def another_pool(candidates: dict[str, Any]) -> None:
    candidates["max_pool_3x3"].pool = visible_average_pool


def a_late_hook(candidates: dict[str, Any]) -> None:
    candidates["skip_connect"].register_forward_hook(lambda _module, _given, y: 2 * y)


@pytest.mark.parametrize(
    "change",
    [
        *(another_norm, another_convolution, another_candidate),
        *(another_forward, another_pool, a_late_hook),
    ],
)
def test_what_is_changed_later_is_found(
    both: Both, passes: Passes, change: Callable[[dict[str, Any]], None]
) -> None:
    results, befores = [], []
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    scores = {kind: torch.randn(S0().shape(kind)).double() for kind in CELL_KINDS}
    for net in both(S0(), width=8):
        befores.append(passes(net, scores, "softmax", image, None)[0][0].detach())
        torch.manual_seed(3)
        change(cast("Any", net.backbone.cells[0].edges[2]).candidates)
        results.append(passes(net.train(), scores, "softmax", image, None))
    assert (results[0][0][0] - befores[0]).abs().max() > 1e-3
    for one, other in zip(*(features + slopes for features, slopes in results), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)


def test_hooks_where_a_fused_cell_calls_nothing_are_refused(both: Both) -> None:
    for name in ("edges.0", "preprocess0", "preprocess1.conv", "preprocess1.norm"):
        _, fused = both()
        cell = fused.backbone.cells[0]
        hook = cell.get_submodule(name).register_forward_hook(lambda *_: None)
        with pytest.raises(RuntimeError, match=f"cell: {name} has hooks or is of another making"):
            fused.train()
        hook.remove()
        fused.train()


def test_a_preprocessor_of_another_making_is_refused(both: Both) -> None:
    class WithoutReLU(ReLUConvBN):
        def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
            del before
            return self.norm(self.conv(x), after)

    _, fused = both()
    cell = fused.backbone.cells[0]
    cell.preprocess1 = WithoutReLU(12, 4)
    with pytest.raises(RuntimeError, match="preprocess1 has hooks or is of another making"):
        fused.eval()
    cell.preprocess1 = ReLUConvBN(12, 4)
    cell.preprocess1.conv = torch.nn.Conv2d(12, 4, 3, padding=1, bias=False)
    with pytest.raises(RuntimeError, match=r"preprocess1\.conv has hooks or is of another"):
        fused.eval()
