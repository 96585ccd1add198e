"""Fixtures shared by all tests: a place for real data, a small search, and slow references."""

import os
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mae_nas.batch import Batch
from mae_nas.decoders import Decoder, HierarchicalDecoder
from mae_nas.masking import Masking
from mae_nas.objectives import Reconstruction
from mae_nas.relaxations import DARTS
from mae_nas.spaces import S0, SearchSpace
from mae_nas.supernet import CellMaker, ReferenceCell, Supernet, SupernetSize

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test starts from the same global stream, whichever tests ran before it."""
    torch.manual_seed(20)


@pytest.fixture
def data_root() -> Path:
    """Where real data sets lie; a test that asks for it is skipped where there are none."""
    root = Path(os.environ.get("MAE_NAS_DATA", "data/"))
    if not root.is_dir():
        pytest.skip(f"no real data: {root} is not a folder (set MAE_NAS_DATA)")
    return root


@pytest.fixture(scope="session")
def on_five_edges() -> Callable[[type[SearchSpace]], SearchSpace]:
    """A space with two nodes, not four: all of its candidates in a third of the operations."""
    return lambda space: type(space.__name__, (space,), {"nodes": 2})()


@pytest.fixture
def make_search() -> Callable[..., tuple[DARTS, Supernet, Reconstruction]]:
    """Build a relaxation, a supernet and an objective that fit each other, in train mode."""

    def _make(  # noqa: PLR0913 - what is combined
        space: SearchSpace | None = None,
        side: int = 16,
        channels: int = 3,
        size: SupernetSize | None = None,
        masking: Masking | None = None,
        decoder: Callable[..., Decoder] = HierarchicalDecoder,
        objective: Callable[..., Reconstruction] = Reconstruction,
        make_cell: CellMaker = ReferenceCell,
    ) -> tuple[DARTS, Supernet, Reconstruction]:
        space = space or S0()
        size = size or SupernetSize(width=4, depth=3)
        plan = size.plan(space, side)
        head = objective(
            decoder=decoder(features=plan.features, channels=channels),
            features=plan.features,
            side=side,
            masking=masking or Masking(ratio=0.5, patch_size=4),
        )
        supernet = Supernet(space, channels, head.stages, plan, make_cell)
        return DARTS(space), supernet, head

    return _make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Random images with scattered data-set positions."""

    def _make(size: int = 3, side: int = 16, channels: int = 3, key: int = 77) -> Batch:
        return Batch(torch.randn(size, channels, side, side), 11 * torch.arange(size) + 5, key)

    return _make


@pytest.fixture
def conv_by_loops() -> Callable[..., Tensor]:
    """A convolution that sums, site by site and tap by tap, what is visible inside the image."""

    def _conv(
        x: Tensor,
        weight: Tensor,
        visible: Tensor | None = None,
        stride: int = 1,
        dilation: int = 1,
    ) -> Tensor:
        batch, _, height, width = x.shape
        kernel, reach = weight.shape[-1], dilation * (weight.shape[-1] // 2)
        is_depthwise = weight.shape[1] == 1 and x.shape[1] > 1
        y = torch.zeros(
            batch, len(weight), -(-height // stride), -(-width // stride), dtype=x.dtype
        )
        seen = torch.ones(batch, 1, height, width, dtype=torch.bool) if visible is None else visible
        sites = product(range(batch), range(y.shape[2]), range(y.shape[3]))
        for (b, i, j), (u, v) in product(sites, product(range(kernel), repeat=2)):
            r, c = i * stride - reach + u * dilation, j * stride - reach + v * dilation
            if 0 <= r < height and 0 <= c < width and seen[b, 0, r, c]:
                tap, site = weight[:, :, u, v], x[b, :, r, c]
                y[b, :, i, j] += tap[:, 0] * site if is_depthwise else tap @ site
        return y

    return _conv


@pytest.fixture
def norm_by_gathering() -> Callable[..., Tensor]:
    """BatchNorm of the visible sites alone: gathered to rows, normalised, scattered back."""

    def _norm(x: Tensor, visible: Tensor, layer: nn.BatchNorm1d | None = None) -> Tensor:
        layer = layer or nn.BatchNorm1d(x.shape[1], affine=False, dtype=x.dtype)
        rows = x.permute(0, 2, 3, 1)
        out = torch.zeros_like(rows)
        out[visible[:, 0]] = layer(rows[visible[:, 0]])
        return out.permute(0, 3, 1, 2)

    return _norm
