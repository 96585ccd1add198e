"""The fused cell as a module: its state, its copies, its costs, repeated and refused passes."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch

from mae_nas.backbone import CELL_KINDS
from mae_nas.masking import VisibleMap
from mae_nas.network.complexity import count_multiply_adds
from mae_nas.relaxations import Mixture
from mae_nas.spaces import S0, S1, S2, SearchSpace
from mae_nas.spaces.primitives import Zero
from mae_nas.supernet import FusedCell, ReferenceCell, Supernet, SupernetSize, sites
from mae_nas.supernet.depthwise import plain
from mae_nas.supernet.separable import Setting, Sums, add_separable
from mae_nas.supernet.sites import Sites

Both = Callable[..., tuple[Supernet, Supernet]]


def test_the_two_cells_hold_the_same_state_in_the_same_order(both: Both) -> None:
    reference, fused = both(S1(), depth=5, width=4)
    assert list(reference.state_dict()) == list(fused.state_dict())
    assert [n for n, _ in reference.named_parameters()] == [n for n, _ in fused.named_parameters()]


@pytest.mark.parametrize(
    ("space", "width", "depth", "side"),
    [(S1(), 2, 3, 8), pytest.param(S0(), 16, 8, 32, marks=pytest.mark.slow)],
)
def test_costs_are_counted_edge_by_edge_whatever_computes(
    space: SearchSpace, width: int, depth: int, side: int
) -> None:
    plan = SupernetSize(width, depth).plan(space, side)
    nets = [Supernet(space, 3, 3, plan, cell) for cell in (FusedCell, ReferenceCell)]
    mixtures = {kind: Mixture(torch.rand(space.shape(kind))) for kind in CELL_KINDS}
    image = torch.randn(1, 3, side, side)
    counted = [
        count_multiply_adds(lambda net=net: net.as_reference()(image, mixtures)) for net in nets
    ]
    assert counted[0] == counted[1] > 0
    assert width < 16 or counted[0] / 1e6 == pytest.approx(300.25, abs=0.005)
    assert nets[0].as_reference().implementation == "reference"


def test_a_second_backward_pass_is_the_first(both: Both) -> None:
    _, fused = both()
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    mixtures = {kind: Mixture(torch.rand(S0().shape(kind)).double()) for kind in CELL_KINDS}
    loss = torch.stack([f.square().mean() for f in fused(image, mixtures)]).sum()
    weights = list(fused.parameters())
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, weights)))


def test_sums_of_half_precision_do_not_overflow(both: Both) -> None:
    _, fused = both(S2(), width=4)
    fused.float()
    cell = fused.backbone.cells[0]
    assert isinstance(cell, FusedCell)
    source = cell._sources[0].separable
    assert source is not None
    here = Sites(66, 32, 32)  # 67,584 rows of ones: beyond float16's 65,504
    setting = Setting(here, here, plain, True)
    mixing = torch.full((2 * len(cell.edges),), 0.1)
    nodes = [torch.zeros(here.rows, 4, dtype=torch.half) for _ in range(4)]
    sums = Sums(nodes, torch.zeros(4, 4))
    r = torch.ones(here.rows, 4, dtype=torch.half)
    with torch.no_grad():
        add_separable(source, setting, r, mixing, sums)
    assert all(each.isfinite().all() for each in [*sums.nodes, sums.lacking])


def test_what_is_known_of_positions_serves_training_after_inference(both: Both) -> None:
    sites.index.cache_clear()
    _, fused = both()
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    mixtures = {kind: Mixture(torch.rand(S0().shape(kind)).double()) for kind in CELL_KINDS}
    with torch.inference_mode():
        fused(image, mixtures)
    fused(image, mixtures)[0].sum().backward()


def test_a_mask_that_shows_more_than_it_says_is_refused_by_cpp(both: Both) -> None:
    _, fused = both()
    mixtures = {kind: Mixture(torch.rand(S0().shape(kind)).double()) for kind in CELL_KINDS}
    visible = VisibleMap(torch.zeros(1, 2, 2, dtype=torch.bool), 4, 2)
    with pytest.raises(ValueError, match="shows more or fewer patches"):
        fused(torch.randn(1, 3, 8, 8, dtype=torch.float64), mixtures, visible)


def test_a_copy_of_a_fused_supernet_computes_with_its_own_weights(both: Both) -> None:
    _, fused = both()
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    mixtures = {kind: Mixture(torch.rand(S0().shape(kind)).double()) for kind in CELL_KINDS}
    expected = fused(image, mixtures)
    copied = deepcopy(fused)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    for one, other in zip(copied(image, mixtures), expected, strict=True):
        assert torch.equal(one, other)
    assert not any(isinstance(m, Zero) and list(m.parameters()) for m in copied.modules())
