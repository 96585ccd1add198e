import math
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from mae_nas.batch import Batch
from mae_nas.decoders import HierarchicalDecoder
from mae_nas.genotype import PUBLISHED
from mae_nas.masking import Masking, to_pixels
from mae_nas.network import DerivedNetwork, NetworkSize
from mae_nas.network.encoder import Encoder
from mae_nas.network.peers import TimmEncoder
from mae_nas.network.pretraining import PretrainModule, PretrainReading, PretrainSettings
from mae_nas.objectives import Reconstruction

ADAMW = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.05)
SIDE, CHANNELS = 16, 2


def network(name: str) -> Encoder:
    if name != "DARTS_V2":
        return TimmEncoder(name, CHANNELS)
    size = NetworkSize(4, 3, "cifar", auxiliary=False)
    return DerivedNetwork(PUBLISHED[name], size, CHANNELS, SIDE, 0)


def module(encoder: Encoder, side: int = SIDE, **settings: object) -> PretrainModule:
    masking = Masking(0.5, side // 4)
    decoder = HierarchicalDecoder(encoder.feature_info, CHANNELS)
    objective = Reconstruction(decoder, encoder.feature_info, side, masking)
    chosen = PretrainSettings(ADAMW, **settings)  # type: ignore[arg-type]
    return PretrainModule(encoder, objective, chosen, 4, 5, batch_size=64)


def batch(side: int = SIDE, images: int = 3) -> Batch:
    return Batch(torch.randn(images, CHANNELS, side, side), torch.arange(images), 11)


@torch.no_grad()
@pytest.mark.parametrize("name", ["DARTS_V2", "resnet18"])
def test_loss_is_the_mean_error_over_hidden_pixels(name: str) -> None:
    side = 32 if name == "resnet18" else SIDE
    made, given = module(network(name), side).double().eval(), batch(side)
    given = given._replace(image=given.image.double())
    loss, _ = made.loss(given)
    patches = made.objective.masking.sample(given.key, given.index, side)  # type: ignore[union-attr]
    hidden = to_pixels(patches, side // 4)[:, 0]
    rebuilt = made.objective.decoder(made.network.maps(given.image * ~hidden[:, None]))  # type: ignore[operator, union-attr]
    errors = [
        abs(float(rebuilt[i, c, y, x] - given.image[i, c, y, x]))
        for i in range(3)
        for y in range(side)
        for x in range(side)
        if hidden[i, y, x]
        for c in range(CHANNELS)
    ]
    assert len(errors) == 3 * CHANNELS * side * side // 2
    assert float(loss) == pytest.approx(sum(errors) / len(errors), rel=1e-12)


@pytest.mark.parametrize("name", ["DARTS_V2", "resnet18", "mobilenetv3_small_050"])
def test_every_weight_has_a_gradient(name: str) -> None:
    side = SIDE if name == "DARTS_V2" else 32
    made = module(network(name), side)
    made.loss(batch(side, 4))[0].backward()
    without = [name for name, weight in made.named_parameters() if weight.grad is None]
    assert without == []


def test_the_rate_rises_and_falls_by_a_cosine() -> None:
    rate = PretrainSettings(ADAMW, warmup=0.1).rate
    assert [rate(step, 40) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    for step in range(4, 40):
        assert rate(step, 40) == pytest.approx((1 + math.cos(math.pi * (step - 4) / 36)) / 2)
    assert PretrainSettings(ADAMW, warmup=0).rate(0, 40) == 1
    for length in (1, 2, 3):
        for warmup in (0.0, 0.05, 0.9):
            rates = [PretrainSettings(ADAMW, warmup).rate(step, length) for step in range(12)]
            assert all(0 <= each <= 1 for each in rates)
            assert rates[0] > 0


def test_matrices_alone_decay() -> None:
    made = module(network("DARTS_V2"))
    optimizer = made.configure_optimizers()
    decays = {
        id(weight): group["weight_decay"]
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    assert len(decays) == len(list(made.parameters()))
    for name, weight in made.named_parameters():
        assert decays[id(weight)] == (0.05 if weight.ndim == 4 else 0), name


@pytest.mark.parametrize("given", [{"warmup": 1.0}, {"grad_clip": math.nan}, {"steps": 0}])
def test_settings_out_of_range_are_refused(given: dict[str, float]) -> None:
    (name,) = given
    with pytest.raises(ValueError, match=f"^{name} "):
        PretrainSettings(ADAMW, **given)  # type: ignore[arg-type]


def test_steps_are_the_length_where_they_are_given() -> None:
    assert module(network("DARTS_V2")).length == 20
    assert module(network("DARTS_V2"), steps=7).length == 7


def test_a_reading_survives_its_file() -> None:
    reading = PretrainReading(3, 0.5, 0.25)
    assert PretrainReading.from_dict({**reading.to_dict(), "new": 1}) == reading
    with pytest.raises(ValueError, match="without held_out_loss is no PretrainReading"):
        PretrainReading.from_dict({"step": 3, "epoch": 0.5})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet19", "model: resnet19: timm has no such model; did you mean resnet18"),
        ("vit_tiny_patch16_224", "model: vit_tiny_patch16_224: has maps of strides 16, 16, 16"),
    ],
)
def test_a_model_that_is_no_encoder_is_refused(name: str, said: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=said) as error:
        TimmEncoder(name, 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["DARTS_V2", "resnet18"])
def test_maps_are_what_is_announced_and_features_are_the_mean_of_the_last(name: str) -> None:
    made, image = network(name).eval(), torch.randn(3, CHANNELS, 64, 64)
    if isinstance(made, DerivedNetwork):
        made = DerivedNetwork(made.genotype, made.size, CHANNELS, 64, 0).eval()
    maps: Sequence[Tensor] = made.maps(image)
    for found, info in zip(maps, made.feature_info, strict=True):
        assert found.shape == (3, info.channels, 64 // info.stride, 64 // info.stride)
    mean = maps[-1].double().sum((2, 3)) / maps[-1][0, 0].numel()
    torch.testing.assert_close(made.features(image).double(), mean, rtol=1e-5, atol=1e-6)
    assert torch.equal(made(image), made.features(image))
