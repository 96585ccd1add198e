"""Which sites of a map the rows of a matrix (M, C) stand for: all of them, or the visible ones.

Where every image shows equally many sites, hidden ones have no row at all (packed): products, sums
and norms then know nothing of masks. Where patches are smaller than a map's cells, the number
differs between images; all sites have rows, and those of hidden ones are kept at 0.
"""

from collections.abc import Callable
from functools import cache, cached_property, wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mae_nas.masking import BatchNorm, VisibleMap


class Sites:
    """The sites of a batch of maps, image by image, row by row.

    Args:
        batch: images.
        height: of a map.
        width: of a map.
        visible: (B, 1, H, W), bool; None: all sites are.
        packed: visible sites of each image, where they alone have rows.
    """

    def __init__(
        self,
        batch: int,
        height: int,
        width: int,
        visible: Tensor | None = None,
        packed: int | None = None,
    ) -> None:
        self.batch, self.height, self.width = batch, height, width
        self.visible = visible
        self.is_packed = packed is not None
        self.per_image = height * width if packed is None else packed
        self.rows = batch * self.per_image

    @property
    def count(self) -> Tensor | int:
        """Visible rows: a number, or a tensor () where only the device knows it."""
        return self.rows if self.visible is None or self.is_packed else self._visible_rows

    @cached_property
    def _visible_rows(self) -> Tensor:
        assert self.visible is not None
        return self.visible.sum()

    @cached_property
    def seen(self) -> Tensor | None:
        """(M, 1), whether a row is visible; None: all are."""
        if self.visible is None or self.is_packed:
            return None
        return self.visible.view(self.rows, 1)

    def masked(self, rows: Tensor) -> Tensor:
        """Rows (M, C) or (Q, M, C) with 0 at hidden ones, in place."""
        return rows if self.seen is None else rows.mul_(self.seen)

    @cached_property
    def _where(self) -> Tensor:
        """Of each row, its position in the flattened maps: (M)."""
        assert self.visible is not None
        hidden = (~self.visible).view(self.batch, -1)
        # Stable, so visible sites come first and in order; shapes depend on no value.
        order = hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, : self.per_image]
        first = torch.arange(self.batch, device=order.device) * hidden.shape[1]
        return (order + first[:, None]).flatten()

    @cached_property
    def site_of(self) -> Tensor | None:
        """Of each row its site, counted through the batch: (M), int32. None: they are the same."""
        return self._where.to(torch.int32) if self.is_packed else None

    @cached_property
    def row_of(self) -> Tensor | None:
        """Of each site its row: (B · H · W), int32, -1 where hidden. None: they are the same."""
        if not self.is_packed:
            return None
        rows = torch.arange(self.rows, dtype=torch.int32, device=self._where.device)
        nowhere = rows.new_full((self.batch * self.height * self.width,), -1)
        return nowhere.scatter_(0, self._where, rows)

    def as_map(self, rows: Tensor) -> Tensor:
        """(M, C) as (B, C, H, W), channels last."""
        if self.is_packed:
            empty = rows.new_zeros(self.batch * self.height * self.width, rows.shape[1])
            rows = empty.index_copy(0, self._where, rows)
        return rows.reshape(self.batch, self.height, self.width, -1).permute(0, 3, 1, 2)

    def as_rows(self, maps: Tensor) -> Tensor:
        """The inverse of `as_map`, which forgets hidden sites if they have no rows."""
        rows = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
        return rows.index_select(0, self._where) if self.is_packed else rows

    def normalised(self, norm: BatchNorm, rows: Tensor) -> Tensor:
        """`norm` of (M, C)."""
        if self.is_packed:
            return norm.of_visible(rows)
        return norm.of_rows(rows, None if self.seen is None else self.seen.view(1, 1, -1, 1))

    @cached_property
    def runs(self) -> Tensor:
        """Stretches of neighbouring sites: (1 or B, R, 4), int32, on the CPU.

        Each is its row, column and length on the map, and the number of its first site's row within
        the image; length 0 fills up. One list serves all images where they agree.
        """
        if not self.is_packed:
            row = torch.arange(self.height, device="cpu")
            length = torch.full_like(row, self.width)
            runs = torch.stack([row, torch.zeros_like(row), length, row * self.width], 1)[None]
            return runs.to(torch.int32)
        assert self.visible is not None
        seen = self.visible[:, 0]
        numbers = seen.flatten(1).cumsum(1).view(seen.shape) - 1
        begins, ends = seen.clone(), seen.clone()
        begins[:, :, 1:] &= ~seen[:, :, :-1]
        ends[:, :, :-1] &= ~seen[:, :, 1:]
        image, row, column = begins.nonzero(as_tuple=True)
        length = ends.nonzero(as_tuple=True)[2] - column + 1
        counts = begins.flatten(1).sum(1)
        if not (seen.flatten(1).sum(1) == self.per_image).all():  # the kernel trusts it
            raise ValueError("visible: an image shows more or fewer patches than the map says")
        place = torch.arange(len(image), device="cpu") - (counts.cumsum(0) - counts)[image]
        shape = (self.batch, int(counts.max()), 4)
        runs = torch.zeros(shape, dtype=torch.int32, device="cpu")
        found = torch.stack([row, column, length, numbers[image, row, column]], 1)
        runs[image, place] = found.to(torch.int32)
        return runs


@cache
def _all_sites(batch: int, height: int, width: int) -> Sites:
    return Sites(batch, height, width)


_known: WeakKeyDictionary[VisibleMap, dict[int, Sites]] = WeakKeyDictionary()


def sites_at(visible: VisibleMap | None, stride: int, shape: tuple[int, int, int]) -> Sites:
    """The sites of a map with `stride` pixels a cell.

    Args:
        visible: None without sparse masking.
        stride: of the map.
        shape: batch, height and width of the map.
    """
    if visible is None:
        return _all_sites(*shape)
    known = _known.setdefault(visible, {})
    if stride not in known:
        known[stride] = Sites(*shape, visible.at(stride), visible.count_at(stride))
    return known[stride]


def in_full_precision(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass without autocast, which would still be on where a step asks for gradients."""

    @wraps(backward)
    def run(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401 - torch's
        with torch.autocast(gradients[-1].device.type, enabled=False):
            return backward(ctx, *gradients)

    return run


def wide(x: Tensor) -> Tensor:
    """`x` in float32 or wider, for sums."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def matrix(weight: Tensor) -> Tensor:
    """A pointwise convolution's weight (C', C, 1, 1) as (C', C).

    By a view that gives its gradient the strides of a channels-last weight: DDP warns of others.
    """
    return weight.permute(0, 2, 3, 1).flatten(1)


@cache
def index(positions: tuple[int, ...], device: torch.device) -> Tensor:
    """Positions on the device, copied there once."""
    with torch.inference_mode(False):  # or training could not use it later
        return torch.tensor(positions, device=device)
