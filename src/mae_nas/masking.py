"""Which pixels are hidden: sampling (SimMIM, Sec. 3.1) and its image at every feature resolution.

Polarity is in the name, never in a number: `hidden` and `visible` are boolean, True meaning what
the name says.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mae_nas import ranks
from mae_nas.checks import Checked
from mae_nas.randomness import Purpose, fold


def hidden_count(patches: int, ratio: float) -> int:
    """How many of `patches` a mask ratio hides: ceil(L·ratio), as SimMIM counts them.

    The 1e-9 keeps products such as 100 × 0.07 = 7.000000000000001 from rounding up.
    """
    return math.ceil(patches * ratio - 1e-9)


def sample_hidden(key: int, index: Tensor, grid: tuple[int, int], count: int) -> Tensor:
    """Hide exactly `count` patches of each image, uniformly, as a pure function of (key, index).

    Shapes:
        index: (B,), int64  ->  hidden: (B, rows, columns), bool.
    """
    rows, columns = grid
    image_keys = fold(fold(key, index), int(Purpose.MASK))
    draws = fold(image_keys[:, None], torch.arange(rows * columns, device=index.device)[None])
    order = draws.argsort(dim=1, stable=True)
    hidden = torch.zeros_like(draws, dtype=torch.bool).scatter(1, order[:, :count], True)
    return hidden.view(-1, rows, columns)


@dataclass(frozen=True)
class Masking(Checked):
    """How much is hidden, in which units, and whether the encoder knows (method of SimMIM, SparK).

    Args:
        ratio: fraction of the patches that is hidden, in (0, 1). 0.5 is the paper's default.
        patch_size: side of the square unit of hiding, pixels. The paper names "8 and 4"; we use 8
            because it is SimMIM's mask patch, 4 being the supernet's own total stride on CIFAR.
        mode: `dense` zeroes hidden pixels and runs the encoder as usual; `sparse` keeps hidden
            sites empty throughout the encoder (SparK). Not stated in the paper; we use `dense`
            because it is the only mode in which both arms of Table 3 receive a gradient.
    """

    ratio: float = 0.5
    patch_size: int = 8
    mode: Literal["dense", "sparse"] = "dense"

    def _problems(self) -> Iterator[str]:
        if not 0 < self.ratio < 1:
            yield f"ratio {self.ratio}: must lie strictly between 0 and 1, e.g. 0.5"
        if self.patch_size < 1:
            yield f"patch_size {self.patch_size}: must be at least 1 pixel, e.g. 8"
        if self.mode not in ("dense", "sparse"):
            yield f"mode {self.mode!r}: must be dense or sparse"

    def patches(self, side: int) -> int:
        """Patches of an image of `side` × `side` pixels; ValueError if the mask does not fit."""
        if side % self.patch_size:
            fitting = ", ".join(str(p) for p in range(1, side) if side % p == 0)
            raise ValueError(
                f"patch_size {self.patch_size} does not divide the image side {side}; "
                f"patch sizes that do: {fitting}"
            )
        patches = (side // self.patch_size) ** 2
        count = hidden_count(patches, self.ratio)
        if not 1 <= count <= patches - 1:
            raise ValueError(
                f"ratio {self.ratio} with patch_size {self.patch_size} hides {count} of the "
                f"{patches} patches of a {side} × {side} image; at least one must be hidden and "
                f"one visible: {_remedy(patches)}"
            )
        return patches

    def effective_ratio(self, side: int) -> float:
        """The fraction really hidden, k/L: whole patches make it differ from `ratio`."""
        patches = self.patches(side)
        return hidden_count(patches, self.ratio) / patches

    def sample(self, key: int, index: Tensor, side: int) -> Tensor:
        """`hidden` (B, g, g), g = side / patch_size, for images `index` (B,) under `key`."""
        patches = self.patches(side)
        grid = side // self.patch_size
        return sample_hidden(key, index, (grid, grid), hidden_count(patches, self.ratio))

    def visible(self, hidden: Tensor) -> "VisibleMap":
        """What `hidden` (B, g, g) of `sample` leaves to be seen."""
        patches = hidden[0].numel()
        return VisibleMap(hidden, self.patch_size, patches - hidden_count(patches, self.ratio))


def _remedy(patches: int) -> str:
    if patches == 1:
        return "use a smaller patch_size"
    return f"use a ratio from {1 / patches:.3g} to {1 - 1 / patches:.3g} or a smaller patch_size"


def to_pixels(hidden: Tensor, patch_size: int) -> Tensor:
    """Patch grid (B, h, w) to pixels (B, 1, h·p, w·p)."""
    pixels = hidden.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)
    return pixels[:, None]


def patchify(image: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) to (B, H/p, W/p, p·p·C): patches, values in the order row, column, channel."""
    batch, channels, height, width = image.shape
    p = patch_size
    cut = image.reshape(batch, channels, height // p, p, width // p, p)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, height // p, width // p, p * p * channels)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """The inverse of `patchify`."""
    batch, rows, columns, values = patches.shape
    p = patch_size
    cut = patches.reshape(batch, rows, columns, p, p, values // (p * p))
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * p, columns * p)


class VisibleMap:
    """The visible sites at any feature resolution, passed explicitly to whatever needs them.

    A feature cell is visible if any of its pixels is: the paper does not say, and "all" would
    leave 6 % of F3 at patch 2 and nothing of it on ImageNet.

    Args:
        hidden: (B, h, w), bool, one value per patch.
        patch_size: pixels per side of a patch.
        shown: how many patches of each image are visible, if all show equally many.
    """

    def __init__(self, hidden: Tensor, patch_size: int, shown: int | None = None) -> None:
        self._patch_size = patch_size
        self._shown = shown
        self._pixels = ~to_pixels(hidden, patch_size)
        self._cells: dict[int, Tensor] = {1: self._pixels}

    def at(self, stride: int) -> Tensor:
        """Visible cells (B, 1, H/stride, W/stride), bool, of a map with `stride` pixels a cell."""
        if stride not in self._cells:
            batch, _, height, width = self._pixels.shape
            blocks = self._pixels.view(batch, 1, height // stride, stride, width // stride, stride)
            self._cells[stride] = blocks.any(dim=5).any(dim=3)
        return self._cells[stride]

    def count_at(self, stride: int) -> int | None:
        """Visible cells of each image on that map; None if that differs between images."""
        if self._shown is None or self._patch_size % stride:
            return None
        return self._shown * (self._patch_size // stride) ** 2


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm over (B, H, W), or over the visible sites only where given (SparK, Sec. 3.2).

        μ = Σ v·x / n,  σ² = Σ v·(x − μ)² / n,  y = v·(γ·(x − μ)/√(σ² + ε) + β),  n = Σ v

    Statistics are taken in float32 or wider; the running variance uses n − 1 as torch's does.
    Output at hidden sites is exactly 0.

    With `synchronised` the sums run over all ranks, on any device; torch's own refuses a CPU.

    Shapes:
        x: (B, C, H, W); visible: (B, 1, H, W), bool, or None for the ordinary layer.
    """

    synchronised = False

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        across = self.synchronised and self.training and ranks.size() > 1
        if visible is None and not across:
            return super().forward(x)
        wide = x if x.dtype == torch.float64 else x.float()
        if self.training:
            mean, variance = self._moments(wide, visible, across)
        else:
            assert self.running_mean is not None
            assert self.running_var is not None
            mean, variance = self.running_mean, self.running_var
        scale = torch.rsqrt(variance + self.eps)
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        y = torch.addcmul(shift[:, None, None], wide, scale[:, None, None])
        return _seen(y, visible).to(x.dtype)

    def of_rows(self, rows: Tensor, visible: Tensor | None = None) -> Tensor:
        """The same of sites (M, C) and visible (1, 1, M, 1)."""
        y = self(rows.view(1, len(rows), 1, -1).permute(0, 3, 1, 2), visible)
        return y.permute(0, 2, 3, 1).reshape(rows.shape)

    def of_visible(self, rows: Tensor) -> Tensor:
        """The same of visible sites alone, (M, C), to the digits that a map of theirs would have.

        Torch's layer is faster than two passes but loses digits where |μ| ≫ σ, so that it is given
        rows that are lessened by their mean; not those of half precision, whose own it would round.
        """
        if len(rows) == 1:  # which torch's refuses
            return self.of_rows(rows, rows.new_ones(1, 1, 1, 1, dtype=torch.bool))
        is_half = rows.element_size() < 4
        if not self.training or is_half or (self.synchronised and ranks.size() > 1):
            return self.of_rows(rows)
        assert self.running_mean is not None
        assert self.momentum is not None
        shift = rows.detach().mean(0)
        y = self.of_rows(rows - shift)
        # By `data`: torch's backward pass wants the mean unchanged, which it does not use.
        self.running_mean.data.add_(shift, alpha=self.momentum)
        return y

    def _moments(self, x: Tensor, visible: Tensor | None, across: bool) -> tuple[Tensor, Tensor]:
        sites = x.new_full((), x[:, 0].numel()) if visible is None else visible.sum().to(x.dtype)
        mean = _seen(x, visible).sum((0, 2, 3)) / sites
        # Two passes: E[x²] − μ² loses three digits in float32 where |μ| ≫ σ.
        squares = _seen(x - mean[:, None, None], visible).square().sum((0, 2, 3))
        if across:
            sites, mean, squares = _pooled(sites, mean, squares)
        variance = squares / sites
        self._update_running(mean.detach(), variance.detach() * sites / (sites - 1).clamp(min=1))
        return mean, variance

    @torch.no_grad()
    def _update_running(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)


def synchronise(module: nn.Module) -> None:
    """Let every BatchNorm in `module` take its statistics over all ranks."""
    for part in module.modules():
        if isinstance(part, BatchNorm):
            part.synchronised = True


def _seen(x: Tensor, visible: Tensor | None) -> Tensor:
    return x if visible is None else x.where(visible, 0.0)


def _pooled(sites: Tensor, mean: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number, mean and squared deviations of all ranks' sites, from each rank's own."""
    every = ranks.gather(torch.cat([sites.view(1), mean, squares]))
    sites, mean, squares = every.split([1, len(mean), len(mean)], dim=1)
    total = sites.sum(0)
    centre = (sites * mean).sum(0) / total
    return total, centre, squares.sum(0) + (sites * (mean - centre).square()).sum(0)


def visible_max_pool(x: Tensor, before: Tensor | None, after: Tensor | None, stride: int) -> Tensor:
    """3×3 max pooling, over visible sites only where they are given; 0 at hidden outputs.

    Shapes:
        x: (B, C, H, W); before: (B, 1, H, W); after: (B, 1, H/stride, W/stride), bool or None.
    """
    if before is None or after is None:
        return functional.max_pool2d(x, 3, stride, padding=1)
    # Not zero: states are signed, and zero would win against a window of negative values.
    filled = x.where(before, torch.finfo(x.dtype).min)
    return functional.max_pool2d(filled, 3, stride, padding=1).where(after, 0.0)


def visible_average_pool(
    x: Tensor, before: Tensor | None, after: Tensor | None, stride: int
) -> Tensor:
    """3×3 average pooling over the sites inside the image, and visible where `before` is given.

    Shapes: as `visible_max_pool`; x is 0 at hidden sites.
    """
    pooled = functional.avg_pool2d(x, 3, stride, padding=1, count_include_pad=False)
    if before is None or after is None:
        return pooled
    share = functional.avg_pool2d(before.to(x.dtype), 3, stride, padding=1, count_include_pad=False)
    return (pooled / share.where(after, 1.0)).where(after, 0.0)
