import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from mae_nas.backbone import FeatureInfo, plan_backbone
from mae_nas.decoders import HierarchicalDecoder
from mae_nas.network.complexity import count_multiply_adds, count_parameters

CIFAR = [FeatureInfo(5, 1), FeatureInfo(6, 2), FeatureInfo(7, 4)]
IMAGENET = [FeatureInfo(5, 8), FeatureInfo(6, 16), FeatureInfo(7, 32)]


def maps(features: Sequence[FeatureInfo], side: int, batch: int = 2) -> list[Tensor]:
    return [
        torch.randn(batch, f.channels, side // f.stride, side // f.stride, dtype=torch.float64)
        for f in features
    ]


def randomise(decoder: nn.Module) -> dict[str, Tensor]:
    """Every value random, biases too, which start at zero."""
    for parameter in decoder.double().parameters():
        nn.init.normal_(parameter)
    return dict(decoder.named_parameters())


def hypercolumn(features: Sequence[Tensor]) -> Tensor:
    """Each site's features of all levels, coarse ones repeated, by index arithmetic."""
    rows = torch.arange(features[0].shape[-1])
    grown = []
    for feature in features:
        at = rows * feature.shape[-1] // features[0].shape[-1]
        grown.append(feature[:, :, at][:, :, :, at])
    return torch.cat(grown, 1)


# Sharp test 12.
def test_pointwise_decoder_is_one_pointwise_convolution_of_the_hypercolumn() -> None:
    decoder = HierarchicalDecoder(CIFAR, channels=3, kernel=1)
    w = randomise(decoder)
    features = maps(CIFAR, 12)
    linear = w["heads.0.1.weight"][:, :, 0, 0]
    first = linear @ w["heads.0.0.weight"][:, :, 0, 0]
    others = [w[f"heads.{i}.0.weight"][:, :, 0, 0] for i in (1, 2)]
    weight = torch.cat([first, *others], 1)
    bias = linear @ w["heads.0.0.bias"] + w["heads.0.1.bias"]
    bias = bias + w["heads.1.0.bias"] + w["heads.2.0.bias"]
    expected = torch.einsum("oc,bchw->bohw", weight, hypercolumn(features))
    expected = expected + bias[:, None, None]
    assert (decoder(features) - expected).abs().max() < 1e-12


# Sharp test 12, for a stem of stride 8: the same algebra in the space of patches.
def test_pointwise_decoder_of_a_strided_stem_is_one_convolution_then_patches() -> None:
    decoder = HierarchicalDecoder(IMAGENET, channels=2, kernel=1)
    w = randomise(decoder)
    features = maps(IMAGENET, 64)
    weight = torch.cat([w[f"heads.{i}.0.weight"][:, :, 0, 0] for i in range(3)], 1)
    bias = torch.stack([w[f"heads.{i}.0.bias"] for i in range(3)]).sum(0)
    cells = torch.einsum("oc,bchw->bohw", weight, hypercolumn(features)) + bias[:, None, None]
    image = decoder(features)
    assert image.shape == (2, 2, 64, 64)
    for channel in range(2):
        for row in range(64):
            for column in range(64):
                value = channel * 64 + row % 8 * 8 + column % 8
                expected = cells[:, value, row // 8, column // 8]
                assert (image[:, channel, row, column] - expected).abs().max() < 1e-12


# Sharp test 12.
def test_a_hand_made_patch_lands_on_the_right_pixels() -> None:
    decoder = HierarchicalDecoder([FeatureInfo(1, 8)], channels=3, taps=[1])
    assert decoder.kernel == 1
    patch = torch.arange(3 * 8 * 8, dtype=torch.float32).view(3, 8, 8)
    paint = decoder.get_submodule("heads.0.0")
    paint.get_parameter("weight").data = patch.reshape(-1, 1, 1, 1).clone()
    feature = torch.zeros(1, 1, 4, 4)
    feature[0, 0, 2, 1] = 1.0
    expected = torch.zeros(1, 3, 32, 32)
    expected[0, :, 16:24, 8:16] = patch
    assert torch.equal(decoder([feature]), expected)


def test_wide_kernel_equals_torch_convolutions_and_repeated_pixels() -> None:
    decoder = HierarchicalDecoder(CIFAR, channels=2, taps=(3, 1))
    assert decoder.kernel == 3
    assert decoder.taps == (1, 3)
    w = randomise(decoder)
    features = maps(CIFAR, 8)
    first = nn.functional.conv2d(features[0], w["heads.0.0.weight"], w["heads.0.0.bias"], 1, 1)
    first = nn.functional.conv2d(first, w["heads.0.1.weight"], w["heads.0.1.bias"])
    third = nn.functional.conv2d(features[2], w["heads.1.0.weight"], w["heads.1.0.bias"], 1, 1)
    third = third.repeat_interleave(4, 2).repeat_interleave(4, 3)
    branches = decoder.branches(features)
    assert (branches[0] - first).abs().max() < 1e-12
    assert (branches[1] - third).abs().max() < 1e-12
    assert (decoder(features) - first - third).abs().max() < 1e-12


def test_shuffle_paints_each_cell_at_its_own_stride() -> None:
    decoder = HierarchicalDecoder(CIFAR, channels=2, taps=[2, 3], kernel=1, upsample="shuffle")
    w = randomise(decoder)
    features = maps(CIFAR, 8)
    image = decoder(features)
    expected = torch.zeros(2, 2, 8, 8, dtype=torch.float64)
    for head, stride, feature in ((0, 2, features[1]), (1, 4, features[2])):
        weight, bias = w[f"heads.{head}.0.weight"][:, :, 0, 0], w[f"heads.{head}.0.bias"]
        for channel in range(2):
            for row in range(8):
                for column in range(8):
                    o = channel * stride**2 + row % stride * stride + column % stride
                    cell = feature[:, :, row // stride, column // stride]
                    expected[:, channel, row, column] += cell @ weight[o] + bias[o]
    assert (image - expected).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("stride", "kernel"), [(1, 3), (2, 3), (8, 1)], ids=["cifar", "small", "imagenet"]
)
def test_auto_kernel_is_pointwise_only_where_cells_are_patches(stride: int, kernel: int) -> None:
    decoder = HierarchicalDecoder([FeatureInfo(3, stride)], 1, taps=[1])
    assert decoder.kernel == kernel
    assert decoder.is_pointwise == (kernel == 1)


# Sharp test 12 and the published sizes.
def test_sizes_are_the_expected_ones() -> None:
    cifar = plan_backbone(16, 8, "cifar").features
    imagenet = plan_backbone(16, 8, "imagenet").features
    hierarchical = HierarchicalDecoder(cifar, 3)
    simmim = HierarchicalDecoder(cifar, 3, taps=[3], kernel=1, upsample="shuffle")
    patches = HierarchicalDecoder(imagenet, 3)
    assert count_parameters(hierarchical) == 12_117
    assert count_parameters(simmim) == 12_336
    assert count_parameters(patches) == (64 + 128 + 256) * 192 + 3 * 192
    for decoder, infos, side, cost in (
        (hierarchical, cifar, 32, 3.11),
        (simmim, cifar, 32, 0.79),
        (patches, imagenet, 224, 16.9),
    ):
        features = [m.float() for m in maps(infos, side, 1)]
        assert decoder(features).shape == (1, 3, side, side)
        counted = count_multiply_adds(lambda d=decoder, f=features: d(f))
        assert counted / 1e6 == pytest.approx(cost, rel=0.01)


def test_first_prediction_is_near_zero() -> None:
    decoder = HierarchicalDecoder(CIFAR, 3).double()
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 50:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.3)
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            assert not module.bias.any()
    features = maps(CIFAR, 16)
    # Three sums of 9·C terms of deviation .02; the first passes another 1 × 1 and nearly vanishes.
    expected = 0.02 * math.sqrt(9 * (6 + 7))
    assert decoder(features).std().item() == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("kernel", [0, 2, -1])
def test_even_kernels_are_refused(kernel: int) -> None:
    with pytest.raises(ValueError, match=f"kernel {kernel}: must be odd"):
        HierarchicalDecoder(CIFAR, 3, kernel=kernel)


@pytest.mark.parametrize("taps", [(), (0,), (4,), (1, 1), (1, 2, 3, 4)])
def test_taps_that_do_not_exist_are_refused(taps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"name one or more of \[1, 2, 3\], each once"):
        HierarchicalDecoder(CIFAR, 3, taps=taps)


def test_unknown_upsampling_is_refused() -> None:
    with pytest.raises(ValueError, match="upsample 'bilinear': must be nearest or shuffle"):
        HierarchicalDecoder(CIFAR, 3, upsample="bilinear")  # type: ignore[arg-type]
