import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from mae_nas.masking import (
    BatchNorm,
    Masking,
    VisibleMap,
    hidden_count,
    patchify,
    sample_hidden,
    to_pixels,
    unpatchify,
    visible_average_pool,
    visible_max_pool,
)
from mae_nas.randomness import Purpose, derive_key

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
# Patches hidden of a 32 × 32 image per patch size, one column per ratio (SimMIM's ceil).
COUNTS = {
    2: (26, 52, 77, 103, 128, 154, 180, 205),
    4: (7, 13, 20, 26, 32, 39, 45, 52),
    8: (2, 4, 5, 7, 8, 10, 12, 13),
    16: (1, 1, 2, 2, 2, 3, 3, 4),
}
FITTING = [
    (p, r, k)
    for p, row in COUNTS.items()
    for r, k in zip(RATIOS, row, strict=True)
    if k < (32 // p) ** 2
]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance)


# Sampling -----------------------------------------------------------------------------------------


# Sharp test 4.
@pytest.mark.parametrize(("patch", "ratio", "count"), FITTING)
def test_sample_hides_exactly_k_patches_of_every_image(
    patch: int, ratio: float, count: int
) -> None:
    masking = Masking(ratio, patch)
    hidden = masking.sample(derive_key(patch), torch.arange(40) * 3, 32)
    assert hidden.dtype == torch.bool
    assert hidden.shape == (40, 32 // patch, 32 // patch)
    assert hidden.flatten(1).sum(1).tolist() == [count] * 40
    assert masking.effective_ratio(32) == count / (32 // patch) ** 2
    assert not (hidden == hidden[:1]).all()
    pixels = to_pixels(hidden, patch)
    blocks = pixels.view(40, 32 // patch, patch, 32 // patch, patch).transpose(2, 3).flatten(3)
    assert torch.equal(blocks.all(3), blocks.any(3))


# Sharp test 4.
def test_sample_hides_every_patch_equally_often() -> None:
    images = 4000
    hidden = sample_hidden(derive_key(5), torch.arange(images), (3, 5), 4)
    p = 4 / 15
    sigma = math.sqrt(p * (1 - p) / images)
    assert (hidden.double().mean(0) - p).abs().max() < 4 * sigma
    both = hidden.flatten(1).double()
    pairs = both.T @ both / images  # two given patches together: k(k - 1) / L(L - 1)
    expected = 4 * 3 / (15 * 14)
    off_diagonal = pairs[~torch.eye(15, dtype=torch.bool)]
    assert (off_diagonal - expected).abs().max() < 4.5 * math.sqrt(expected / images)


# Sharp test 14.
def test_sample_depends_on_key_and_index_alone() -> None:
    masking = Masking(0.5, 4)
    key = derive_key(0, Purpose.HELD_OUT)
    index = torch.tensor([7, 123456, 0, 42, 3])
    hidden = masking.sample(key, index, 32)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(masking.sample(key, index[order], 32), hidden[order])
    for i in range(5):
        torch.manual_seed(i)
        assert torch.equal(masking.sample(key, index[i : i + 1], 32)[0], hidden[i])
    others = [derive_key(1, Purpose.HELD_OUT)]
    others += [derive_key(0, p, s) for p in (Purpose.WEIGHTS, Purpose.ARCHITECTURE) for s in (0, 1)]
    drawn = [hidden, *(masking.sample(other, index, 32) for other in others)]
    all_masks = torch.cat(drawn).flatten(1)
    assert len(all_masks.unique(dim=0)) == len(all_masks)


def test_hidden_count_is_not_moved_by_rounding() -> None:
    assert 100 * 0.07 > 7
    assert hidden_count(100, 0.07) == 7
    for patches in (16, 49, 64, 100, 196, 256, 400, 784):
        for percent in range(1, 100):
            assert hidden_count(patches, percent / 100) == -(-patches * percent // 100)


# Sharp test 5.
@pytest.mark.parametrize(
    ("ratio", "patch", "side", "words"),
    [
        (0.8, 16, 32, "hides 4 of the 4 patches"),
        (0.5, 32, 32, "use a smaller patch_size"),
        (0.99, 8, 32, "a ratio from 0.0625 to 0.938"),
        (0.5, 5, 32, "does not divide the image side 32; patch sizes that do: 1, 2, 4, 8, 16"),
        (0.5, 8, 28, "patch_size 8 does not divide the image side 28"),
    ],
)
def test_patches_that_do_not_fit_are_refused(
    ratio: float, patch: int, side: int, words: str
) -> None:
    masking = Masking(ratio, patch)
    for refuse in (masking.patches, masking.effective_ratio):
        with pytest.raises(ValueError, match=words) as error:
            refuse(side)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=words):
        masking.sample(1, torch.arange(2), side)


# Sharp test 5.
@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_ratio_outside_the_open_interval_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        Masking(ratio)


def test_patch_size_and_mode_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel"):
        Masking(patch_size=0)
    with pytest.raises(ValueError, match="must be dense or sparse"):
        Masking(mode="spark")  # type: ignore[arg-type]


# Geometry -----------------------------------------------------------------------------------------


def test_to_pixels_repeats_each_patch() -> None:
    hidden = torch.rand(2, 3, 4) < 0.5
    pixels = to_pixels(hidden, 5)
    assert pixels.shape == (2, 1, 15, 20)
    for b in range(2):
        for row in range(15):
            for column in range(20):
                assert pixels[b, 0, row, column] == hidden[b, row // 5, column // 5]


def test_patchify_orders_row_column_channel_and_unpatchify_undoes_it() -> None:
    image = torch.randn(2, 3, 6, 10)
    patches = patchify(image, 2)
    assert patches.shape == (2, 3, 5, 12)
    for row in range(6):
        for column in range(10):
            for channel in range(3):
                value = (row % 2 * 2 + column % 2) * 3 + channel
                expected = image[:, channel, row, column]
                assert torch.equal(patches[:, row // 2, column // 2, value], expected)
    assert torch.equal(unpatchify(patches, 2), image)


# Sharp test 11.
@pytest.mark.parametrize("patch", [2, 4, 8, 16])
def test_visible_map_shows_a_cell_if_any_of_its_pixels_is_visible(patch: int) -> None:
    hidden = torch.rand(3, 32 // patch, 32 // patch) < 0.7
    visible = VisibleMap(hidden, patch)
    pixels = ~to_pixels(hidden, patch)
    for stride in (32, 4, 1, 2, 16, 8):
        at = visible.at(stride)
        side = 32 // stride
        assert at.dtype == torch.bool
        assert at.shape == (3, 1, side, side)
        for b in range(3):
            for i in range(side):
                for j in range(side):
                    cell = pixels[
                        b, 0, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride
                    ]
                    assert at[b, 0, i, j] == bool(cell.sum() > 0)
        if patch % stride == 0:
            assert torch.equal(at, pixels[:, :, ::stride, ::stride])


# Sharp test 11.
def test_hiding_more_never_makes_a_cell_visible() -> None:
    some = torch.rand(4, 8, 8) < 0.6
    more = some | (torch.rand(4, 8, 8) < 0.5)
    assert (more & ~some).any()
    for stride in (1, 2, 4, 8, 16):
        assert not (VisibleMap(more, 2).at(stride) & ~VisibleMap(some, 2).at(stride)).any()


# Operations over visible sites --------------------------------------------------------------------


def visible_sites(*shape: int, share: float = 0.5) -> Tensor:
    return torch.rand(*shape) < share


# Sharp test 6.
@pytest.mark.parametrize("is_affine", [False, True])
def test_batch_norm_equals_gathering_forward_backward_and_running(
    is_affine: bool, norm_by_gathering: Callable[..., Tensor]
) -> None:
    ours = BatchNorm(5, affine=is_affine, momentum=0.3, dtype=torch.float64)
    theirs = nn.BatchNorm1d(5, affine=is_affine, momentum=0.3, dtype=torch.float64)
    if is_affine:
        with torch.no_grad():
            ours.weight.normal_()
            ours.bias.normal_()
        theirs.load_state_dict(ours.state_dict())
    visible = visible_sites(2, 1, 6, 7)
    weight = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    for step in range(3):
        x = 3 * torch.randn(2, 5, 6, 7, dtype=torch.float64) + 2 + step
        x = x.where(visible, 1e6 if step == 2 else 0.0)  # what a convolution spills
        mine, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, expected = ours(mine, visible), norm_by_gathering(reference, visible, theirs)
        assert close(y, expected)
        assert not y.masked_fill(visible, 0.0).any()
        (y * weight).sum().backward()
        (expected * weight).sum().backward()
        assert mine.grad is not None
        assert reference.grad is not None
        assert close(mine.grad, reference.grad)
        assert not mine.grad.masked_fill(visible, 0.0).any()
    for name, value in theirs.state_dict().items():
        assert close(ours.state_dict()[name], value), name
    if is_affine:
        for name, parameter in theirs.named_parameters():
            mine_grad, expected_grad = ours.get_parameter(name).grad, parameter.grad
            assert mine_grad is not None
            assert expected_grad is not None
            assert close(mine_grad, expected_grad)
    ours.eval()
    theirs.eval()
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    assert close(ours(x, visible), norm_by_gathering(x, visible, theirs))


# Sharp test 7.
def test_batch_norm_with_all_visible_is_the_ordinary_layer() -> None:
    ours, theirs = BatchNorm(4, dtype=torch.float64), nn.BatchNorm2d(4, dtype=torch.float64)
    plain = BatchNorm(4, dtype=torch.float64)
    everywhere = torch.ones(3, 1, 5, 6, dtype=torch.bool)
    for _ in range(2):
        x = torch.randn(3, 4, 5, 6, dtype=torch.float64) * 2 - 1
        expected = theirs(x)
        assert close(ours(x, everywhere), expected)
        assert torch.equal(plain(x), expected)
    for name, value in theirs.state_dict().items():
        assert close(ours.state_dict()[name], value), name


def test_batch_norm_keeps_its_digits_where_the_mean_dwarfs_the_deviation() -> None:
    visible = visible_sites(8, 1, 16, 16)
    x = (torch.randn(8, 2, 16, 16, dtype=torch.float64) + 300).float()
    y = BatchNorm(2, affine=False)(x, visible)
    exact = BatchNorm(2, affine=False, dtype=torch.float64)(x.double(), visible)
    assert (y - exact).abs().max() < 2e-4


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("mean", [4, 300])
def test_batch_norm_takes_half_precision_statistics_in_single(
    half: torch.dtype, is_masked: bool, mean: int
) -> None:
    visible = visible_sites(8, 1, 16, 16) if is_masked else None
    x = (torch.randn(8, 3, 16, 16) + mean).to(half)
    layer, exact = BatchNorm(3, affine=False), BatchNorm(3, affine=False, dtype=torch.float64)
    with torch.autocast("cpu", half):
        y = layer(x, visible)
    assert y.dtype == half
    expected = exact(x.double(), visible)
    assert (y.double() - expected).abs().max() <= expected.abs().max() * torch.finfo(half).eps
    for name in ("running_mean", "running_var"):
        found, wanted = layer.get_buffer(name), exact.get_buffer(name)
        assert found.dtype == torch.float32
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_batch_norm_of_one_visible_site_is_finite() -> None:
    visible = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    visible[1, 0, 2, 0] = True
    layer = BatchNorm(2, affine=False)
    assert layer(torch.randn(2, 2, 3, 3), visible).abs().max() < 1e-4
    assert layer.running_var is not None
    assert layer.running_var.isfinite().all()


def window(i: int, j: int, stride: int, height: int, width: int) -> Iterator[tuple[int, int]]:
    for r in range(i * stride - 1, i * stride + 2):
        for c in range(j * stride - 1, j * stride + 2):
            if 0 <= r < height and 0 <= c < width:
                yield r, c


def pool_by_loops(
    x: Tensor, before: Tensor, after: Tensor, stride: int, of: Callable[[Tensor], Tensor]
) -> Tensor:
    batch, channels, height, width = x.shape
    y = torch.zeros(batch, channels, height // stride, width // stride, dtype=x.dtype)
    for b, i, j in after[:, 0].nonzero().tolist():
        sites = [s for s in window(i, j, stride, height, width) if before[b, 0, s[0], s[1]]]
        y[b, :, i, j] = of(torch.stack([x[b, :, r, c] for r, c in sites]))
    return y


# Sharp test 6. The second row is patch 2 at a stride of 4 and more: cells are visible in part.
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("patch", "pixels_per_cell"), [(4, 1), (2, 2), (2, 4)])
def test_pools_equal_loops_over_visible_sites(
    stride: int, patch: int, pixels_per_cell: int
) -> None:
    visible = VisibleMap(torch.rand(3, 16 // patch, 16 // patch) < 0.7, patch)
    before, after = visible.at(pixels_per_cell), visible.at(pixels_per_cell * stride)
    assert not before.all()
    side = 16 // pixels_per_cell
    x = (torch.randn(3, 2, side, side, dtype=torch.float64) - 2).where(before, 0.0)
    mine, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = torch.randn(3, 2, side // stride, side // stride, dtype=torch.float64)
    for pool, of in (
        (visible_max_pool, lambda rows: rows.amax(0)),
        (visible_average_pool, lambda rows: rows.mean(0)),
    ):
        y, expected = (
            pool(mine, before, after, stride),
            pool_by_loops(reference, before, after, stride, of),
        )
        assert close(y, expected)
        (gradient,) = torch.autograd.grad((y * weight).sum(), mine)
        (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), reference)
        assert close(gradient.where(before, 0.0), expected_gradient)


@pytest.mark.parametrize("stride", [1, 2])
def test_pools_without_a_mask_are_the_ordinary_ones(stride: int) -> None:
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64) - 1
    everywhere = torch.ones(2, 1, 6, 8, dtype=torch.bool)
    after = everywhere[:, :, ::stride, ::stride]
    for pool, of in (
        (visible_max_pool, lambda rows: rows.amax(0)),
        (visible_average_pool, lambda rows: rows.mean(0)),
    ):
        expected = pool_by_loops(x, everywhere, after, stride, of)
        assert close(pool(x, None, None, stride), expected)
        assert close(pool(x, everywhere, after, stride), expected)


# Sharp test 10.
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pool", [visible_max_pool, visible_average_pool])
def test_pools_of_a_constant_image_are_constant_up_to_every_border(
    pool: Callable[..., Tensor], stride: int
) -> None:
    visible = VisibleMap(torch.rand(4, 8, 8) < 0.6, 2)
    before, after = visible.at(1), visible.at(stride)
    x = torch.full((4, 3, 16, 16), -1.75, dtype=torch.float64).where(before, 0.0)
    assert close(
        pool(x, before, after, stride),
        torch.full_like(x[:, :, ::stride, ::stride], -1.75).where(after, 0.0),
    )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_pools_under_half_precision_round_only_what_they_return(
    half: torch.dtype, is_masked: bool, stride: int
) -> None:
    """Sum, share and quotient once each: an average of what cancels is as exact as its terms."""
    visible = VisibleMap(torch.rand(2, 4, 4) < 0.5, 4)
    at, after = (visible.at(1), visible.at(stride)) if is_masked else (None, None)
    x = torch.randn(2, 3, 16, 16).where(visible.at(1), 0.0).to(half)
    for pool, roundings in ((visible_max_pool, 0), (visible_average_pool, 3)):
        with torch.autocast("cpu", half):
            y = pool(x, at, after, stride)
        exact = pool(x.double(), at, after, stride)
        assert y.dtype == half
        bound = roundings * torch.finfo(half).eps / 2 * exact.abs()
        assert ((y - exact).abs() <= 1.01 * bound).all()


def test_norm_of_visible_rows_in_half_precision_takes_statistics_in_single() -> None:
    norm, rows = BatchNorm(6, affine=False), torch.randn(999, 6).bfloat16()
    norm.of_visible(rows)
    assert norm.running_mean is not None
    assert (norm.running_mean - 0.1 * rows.double().mean(0)).abs().max() < 1e-7


@pytest.mark.parametrize("shown", [1, 12])
@pytest.mark.parametrize("is_training", [True, False])
def test_norm_of_visible_rows_alone_is_that_of_a_map_that_hides_the_others(
    shown: int, is_training: bool
) -> None:
    visible = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    visible.view(-1)[torch.randperm(25)[:shown]] = True
    found = []
    x = 40 + torch.randn(1, 6, 5, 5, dtype=torch.float64)
    for is_packed in (True, False):
        norm = BatchNorm(6, affine=False).double().train(is_training)
        leaf = x.clone().requires_grad_()
        if is_packed:
            y = norm.of_visible(leaf.permute(0, 2, 3, 1)[visible[:, 0]])
        else:
            y = norm(leaf, visible).permute(0, 2, 3, 1)[visible[:, 0]]
        weight = torch.arange(float(y.numel())).view_as(y)
        (gradient,) = torch.autograd.grad((weight * y).sum(), leaf)
        found.append([y, gradient, *norm.buffers()])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() < 1e-9
