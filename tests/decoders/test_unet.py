import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, relu6

from mae_nas.backbone import FeatureInfo, plan_backbone
from mae_nas.decoders import UNetDecoder
from mae_nas.network.complexity import count_multiply_adds, count_parameters

FEATURES = [FeatureInfo(5, 2), FeatureInfo(6, 4), FeatureInfo(7, 8)]


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    y = (x - mean) / (variance + 1e-5).sqrt()
    return y * weight[:, None, None] + bias[:, None, None]


@pytest.mark.parametrize("taps", [(1, 2, 3), (2, 3), (1, 3), (3,), (1, 2), (1,)])
def test_decoder_equals_its_definition(taps: tuple[int, ...]) -> None:
    decoder = UNetDecoder(FEATURES, channels=3, taps=taps, width=8).double()
    for parameter in decoder.parameters():  # large, so that ReLU6 cuts at both ends
        nn.init.normal_(parameter, std=3.0 if parameter.ndim == 1 else 0.3)
    w = dict(decoder.named_parameters())
    features = [
        torch.randn(2, f.channels, 16 // f.stride, 16 // f.stride, dtype=torch.float64)
        for f in FEATURES
    ]
    x = conv2d(features[taps[-1] - 1], w["enter.weight"], w["enter.bias"])
    for block, tap in enumerate(range(taps[-1] - 1, 0, -1)):
        at = f"blocks.{block}."
        x = conv_transpose2d(x, w[at + "0.weight"], w[at + "0.bias"], 2, 1)
        x = conv2d(x, w[at + "1.weight"], padding=1)
        x = relu6(norm(x, w[at + "2.weight"], w[at + "2.bias"]))
        x = conv2d(x, w[at + "4.weight"], padding=1)
        x = norm(x, w[at + "5.weight"], w[at + "5.bias"])
        if tap in taps:
            at = f"laterals.{tap}."
            x = x + conv2d(features[tap - 1], w[at + "weight"], w[at + "bias"], padding=1)
    cells = conv2d(x, w["paint.weight"], w["paint.bias"])
    image = decoder(features)
    assert image.shape == (2, 3, 16, 16)
    for row in range(16):
        for column in range(16):
            values = [c * 4 + row % 2 * 2 + column % 2 for c in range(3)]
            expected = cells[:, values, row // 2, column // 2]
            assert (image[:, :, row, column] - expected).abs().max() < 1e-11


def test_size_is_the_expected_one() -> None:
    features = plan_backbone(16, 8, "cifar").features
    decoder = UNetDecoder(features, 3)
    assert count_parameters(decoder) == 214_051
    maps = [torch.randn(1, f.channels, 32 // f.stride, 32 // f.stride) for f in features]
    assert count_multiply_adds(lambda: decoder(maps)) / 1e6 == pytest.approx(56.7, abs=0.1)


def test_only_a_decoder_without_blocks_is_pointwise() -> None:
    assert UNetDecoder(FEATURES, 3, taps=(1,)).is_pointwise
    assert not UNetDecoder(FEATURES, 3, taps=(1, 2)).is_pointwise


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="width 6: must be a multiple of 4"):
        UNetDecoder(FEATURES, 3, width=6)
    with pytest.raises(ValueError, match="kernel 2: must be odd"):
        UNetDecoder(FEATURES, 3, kernel=2)
    with pytest.raises(ValueError, match="each once"):
        UNetDecoder(FEATURES, 3, taps=(2, 2))
    UNetDecoder(FEATURES, 3, taps=(1, 2), width=6)
