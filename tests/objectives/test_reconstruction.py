"""The loss itself, with predictions and targets given: values, gradients, yardsticks."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mae_nas.backbone import FeatureInfo
from mae_nas.batch import Batch
from mae_nas.decoders import Decoder, HierarchicalDecoder
from mae_nas.masking import Masking, VisibleMap, to_pixels
from mae_nas.objectives import Reconstruction
from mae_nas.objectives.reconstruction import Reconstructed
from mae_nas.randomness import derive_key

INFOS = [FeatureInfo(4, 1), FeatureInfo(5, 2), FeatureInfo(6, 4)]
Make = Callable[..., Reconstruction]


class Fixed(Decoder):
    """A decoder that predicts what it is told: the first feature map is the image."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return features[0]


def build(
    side: int = 8,
    masking: Masking | None = None,
    target: Literal["image", "permuted"] = "image",
    loss: Literal["l1", "l2"] = "l1",
    norm_pix: bool = False,
) -> Reconstruction:
    masking = masking or Masking(0.4, 2)
    return Reconstruction(Fixed(INFOS, [1]), INFOS, side, masking, target, loss, norm_pix)


def hidden_of(objective: Reconstruction, batch: Batch) -> Tensor:
    patches = objective.masking.sample(batch.key, batch.index, objective.side)
    return to_pixels(patches, objective.masking.patch_size)


def loss_of(objective: Reconstruction, batch: Batch, prediction: Tensor) -> Tensor:
    return objective(lambda _image, _visible: [prediction], batch)[0]


def loss_by_loops(prediction: Tensor, target: Tensor, hidden: Tensor, power: int) -> float:
    errors = [
        abs(prediction[b, c, i, j].item() - target[b, c, i, j].item()) ** power
        for b, i, j in hidden[:, 0].nonzero().tolist()
        for c in range(target.shape[1])
    ]
    return sum(errors) / len(errors)


def normalised_by_loops(image: Tensor, patch: int) -> Tensor:
    out = torch.empty_like(image)
    for b, i, j in product(range(len(image)), *(range(0, s, patch) for s in image.shape[2:])):
        block = image[b, :, i : i + patch, j : j + patch]
        values = block.flatten().tolist()
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        out[b, :, i : i + patch, j : j + patch] = (block - mean) / (variance + 1e-6) ** 0.5
    return out


# Sharp tests 2 and 3.
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("loss", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("target", ["image", "permuted"])
@pytest.mark.parametrize("norm_pix", [False, True])
def test_loss_is_the_mean_error_over_hidden_pixels_and_channels(
    channels: int,
    loss: Literal["l1", "l2"],
    power: int,
    target: Literal["image", "permuted"],
    norm_pix: bool,
    make_batch: Callable[..., Batch],
) -> None:
    objective = build(target=target, loss=loss, norm_pix=norm_pix)
    batch = make_batch(3, 8, channels)
    batch = batch._replace(image=batch.image.double() * 2 + 1)
    prediction = torch.randn_like(batch.image)
    expected = batch.image if target == "image" else batch.image[[1, 2, 0]]
    if norm_pix:
        expected = normalised_by_loops(expected, 2)
    assert (objective.target_of(batch) - expected).abs().max() < 1e-10
    by_hand = loss_by_loops(prediction, expected, hidden_of(objective, batch), power)
    assert loss_of(objective, batch, prediction).item() == pytest.approx(by_hand, abs=1e-12)


# Sharp test 2.
def test_loss_of_a_constant_error_is_that_error(make_batch: Callable[..., Batch]) -> None:
    batch = make_batch(3, 8)
    for loss, expected in (("l1", 0.75), ("l2", 0.5625)):
        objective = build(loss=loss)  # type: ignore[arg-type]
        hidden = hidden_of(objective, batch)
        prediction = torch.where(hidden, batch.image - 0.75, 1e6)
        assert loss_of(objective, batch, prediction).item() == pytest.approx(expected, abs=1e-6)


# Sharp test 2.
@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_loss_ignores_what_is_visible(
    loss: Literal["l1", "l2"], norm_pix: bool, make_batch: Callable[..., Batch]
) -> None:
    objective = build(loss=loss, norm_pix=norm_pix)
    batch = make_batch(3, 8)
    hidden = hidden_of(objective, batch)
    prediction = torch.randn_like(batch.image).requires_grad_()
    value = loss_of(objective, batch, prediction)
    (gradient,) = torch.autograd.grad(value, prediction)
    assert not gradient.masked_fill(hidden, 0.0).any()
    assert (gradient != 0).sum() == 3 * hidden.sum()
    for junk in (torch.nan, 1e30):
        other = batch._replace(image=batch.image.where(hidden, junk))
        told = prediction.detach().where(hidden, junk).requires_grad_()
        again = loss_of(objective, other, told)
        assert torch.equal(again, value)
        assert torch.equal(torch.autograd.grad(again, told)[0], gradient)


# Sharp test 3.
def test_loss_of_a_batch_is_the_mean_over_its_parts(make_batch: Callable[..., Batch]) -> None:
    objective = build()
    batch = make_batch(5, 8)
    prediction = torch.randn_like(batch.image)
    losses = [
        loss_of(objective, Batch(batch.image[rows], batch.index[rows], batch.key), prediction[rows])
        * len(batch.index[rows])
        for rows in (slice(0, 1), slice(1, 3), slice(3, 5))
    ]
    whole = loss_of(objective, batch, prediction)
    assert (torch.stack(losses).sum() / 5).item() == pytest.approx(whole.item(), abs=1e-6)


# Sharp test 16.
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_loss_is_single_precision_under_autocast(
    make_batch: Callable[..., Batch], half: torch.dtype
) -> None:
    objective = build()
    batch = make_batch(3, 8)
    exact = objective.yardsticks([batch])
    branches = [torch.randn_like(batch.image).to(half) for _ in range(3)]
    with torch.autocast("cpu", half):
        loss = loss_of(objective, batch, torch.zeros_like(batch.image).to(half))
        prediction = Reconstructed(branches, hidden_of(objective, batch)).prediction
        assert objective.yardsticks([batch]) == exact
    assert loss.dtype == prediction.dtype == torch.float32
    hidden = hidden_of(objective, batch).expand_as(batch.image)
    assert loss.item() == pytest.approx(batch.image[hidden].abs().mean().item(), abs=1e-6)
    assert (prediction - sum(branch.double() for branch in branches)).abs().max() < 1e-6


# Sharp test 16.
def test_constant_images_give_no_nan_with_normalised_patches() -> None:
    objective = build(norm_pix=True)
    batch = Batch(torch.full((2, 3, 8, 8), 0.3), torch.arange(2), 5)
    prediction = torch.zeros(2, 3, 8, 8, requires_grad=True)
    loss = loss_of(objective, batch, prediction)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-3)
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()


# Sharp test 15: one batch has one mask, however often the loss is evaluated.
def test_mask_belongs_to_the_batch(make_batch: Callable[..., Batch]) -> None:
    objective = build(masking=Masking(0.5, 2))
    seen: list[Tensor] = []

    def encode(image: Tensor, _visible: VisibleMap | None) -> Sequence[Tensor]:
        seen.append(image)
        return [image]

    batch = make_batch(3, 8, key=derive_key(0, 2, 9))
    hidden = [objective.reconstruct(encode, batch).hidden for _ in range(3)]
    assert torch.equal(hidden[0], hidden[1])
    assert torch.equal(hidden[0], hidden[2])
    assert torch.equal(seen[0], batch.image.masked_fill(hidden[0], 0.0))
    other = objective.reconstruct(encode, batch._replace(key=derive_key(0, 3, 9))).hidden
    assert not torch.equal(other, hidden[0])


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_only_sparse_masking_tells_the_encoder_what_is_visible(
    mode: Literal["dense", "sparse"], make_batch: Callable[..., Batch]
) -> None:
    objective = Reconstruction(Fixed(INFOS, [1]), INFOS, 8, Masking(0.25, 2, mode))
    told: list[VisibleMap | None] = []

    def encode(image: Tensor, visible: VisibleMap | None) -> Sequence[Tensor]:
        told.append(visible)
        return [image.new_zeros(3, 4, 8, 8)]

    hidden = objective.reconstruct(encode, make_batch(3, 8)).hidden
    assert len(told) == 1
    if mode == "dense":
        assert told == [None]
    else:
        assert told[0] is not None
        assert torch.equal(told[0].at(1), ~hidden)


# Sharp test 8.
def test_densify_puts_the_token_at_hidden_sites_and_nothing_else_there() -> None:
    decoder = HierarchicalDecoder(INFOS, 3, taps=(1, 3))
    objective = Reconstruction(decoder, INFOS, 8, Masking(0.5, 4, "sparse"))
    assert list(objective.tokens) == ["1", "3"]
    visible = VisibleMap(torch.tensor([[[True, False], [False, True]]]), 4)
    features = [
        torch.randn(1, info.channels, 8 // info.stride, 8 // info.stride, requires_grad=True)
        for info in INFOS
    ]
    dense = objective.densify(features, visible)
    assert dense[1] is features[1]
    for tap in (1, 3):
        token, feature, out = objective.tokens[str(tap)], features[tap - 1], dense[tap - 1]
        at = visible.at(INFOS[tap - 1].stride).expand_as(out)
        assert torch.equal(out[at], feature[at])
        assert torch.equal(out[~at], token.expand_as(out)[~at])
        out.square().sum().backward()
        assert feature.grad is not None
        assert not feature.grad[~at].any()
        assert token.grad is not None
        assert (token.grad != 0).all()


# Sharp tests 5 and 9.
@pytest.mark.parametrize(
    ("taps", "patch", "is_accepted"),
    [((3,), 4, False), ((3,), 2, True), ((1, 2), 2, False), ((1,), 8, False), ((1, 2, 3), 2, True)],
)
def test_sparse_masking_with_a_pointwise_decoder_is_refused_where_it_cannot_learn(
    taps: tuple[int, ...], patch: int, is_accepted: bool
) -> None:
    make = partial(Reconstruction, features=INFOS, side=16)
    pointwise = HierarchicalDecoder(INFOS, 3, taps, kernel=1)
    make(pointwise, masking=Masking(0.5, patch, "dense"))
    make(HierarchicalDecoder(INFOS, 3, taps, kernel=3), masking=Masking(0.5, patch, "sparse"))
    if is_accepted:
        make(pointwise, masking=Masking(0.5, patch, "sparse"))
        return
    with pytest.raises(ValueError, match=r"mask.mode=dense, or .*decoder.kernel=3") as error:
        make(pointwise, masking=Masking(0.5, patch, "sparse"))
    assert "\n" not in str(error.value)


# Sharp test 5.
def test_masks_that_hide_all_or_do_not_fit_are_refused_at_once() -> None:
    for masking in (Masking(0.8, 4), Masking(0.5, 8), Masking(0.5, 3)):
        with pytest.raises(ValueError, match=r"8 × 8|side 8"):
            build(masking=masking)


def test_an_image_of_another_shape_is_refused(make_batch: Callable[..., Batch]) -> None:
    objective = build(16)
    hidden = torch.ones(3, 1, 16, 16, dtype=torch.bool)
    line = r"decoder: its image is \(3, 1, 16, 16\) where \(3, 3, 16, 16\) is wanted"
    with pytest.raises(ValueError, match=line):
        objective.error(torch.zeros(3, 1, 16, 16), make_batch().image, hidden)


def test_unknown_names_and_single_images_are_refused(make_batch: Callable[..., Batch]) -> None:
    with pytest.raises(ValueError, match="target 'self': must be image or permuted"):
        build(target="self")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loss 'mse': must be l1 or l2"):
        build(loss="mse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2 images"):
        build(target="permuted").target_of(make_batch(1, 8))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("target", ["image", "permuted"])
def test_yardsticks_equal_numpy_loops(
    channels: int,
    loss: Literal["l1", "l2"],
    target: Literal["image", "permuted"],
    make_batch: Callable[..., Batch],
) -> None:
    objective = build(target=target, loss=loss)
    batches = [make_batch(n, 8, channels, key=n) for n in (3, 4)]
    batches = [b._replace(image=b.image * 1.7 + 0.4) for b in batches]
    errors: dict[str, list[float]] = {"constant": [], "visible_mean": []}
    pixels: list[np.ndarray] = []
    for batch in batches:
        hidden = hidden_of(objective, batch)[:, 0].numpy()
        image = batch.image.numpy().astype(np.float64)
        wanted = np.roll(image, -1, 0) if target == "permuted" else image
        for i in range(len(image)):
            pixels.append(wanted[i][:, hidden[i]])
            seen = image[i][:, ~hidden[i]].mean(1, keepdims=True)
            errors["visible_mean"].append(distance(pixels[-1] - seen, loss))
    each = np.concatenate(pixels, 1)
    best = np.median(each, 1) if loss == "l1" else each.mean(1)
    errors["constant"] = [distance(p - best[:, None], loss) for p in pixels]
    yardsticks = objective.yardsticks(batches)
    assert set(yardsticks) == set(errors)
    for name, values in errors.items():
        assert yardsticks[name] == pytest.approx(np.mean(values), rel=1e-5), name
    for shift in (-0.1, 0.1):
        worse = np.mean([distance(p - best[:, None] - shift, loss) for p in pixels])
        assert yardsticks["constant"] <= worse


def distance(error: np.ndarray, loss: str) -> float:
    return float(np.abs(error).mean() if loss == "l1" else np.square(error).mean())


def test_yardsticks_of_normalised_patches_leave_colour_out(
    make_batch: Callable[..., Batch],
) -> None:
    yardsticks = build(norm_pix=True, loss="l2").yardsticks([make_batch(6, 8)])
    assert set(yardsticks) == {"constant"}
    assert (
        0.7 < yardsticks["constant"] < 1.0
    )  # (n − 1)/n of the unit variance, less the median's gain


@pytest.mark.parametrize("norm_pix", [False, True])
def test_picture_is_in_the_units_of_the_image(
    norm_pix: bool, make_batch: Callable[..., Batch]
) -> None:
    objective = build(norm_pix=norm_pix)
    batch = make_batch(2, 8)
    perfect = objective.target_of(batch)
    prediction, hidden = objective.picture(lambda _image, _visible: [perfect], batch)
    assert (prediction - batch.image).abs().max() < 1e-5
    assert torch.equal(hidden, hidden_of(objective, batch))


def test_values_are_the_root_mean_squares_of_the_branches(
    make_batch: Callable[..., Batch],
) -> None:
    decoder = HierarchicalDecoder(INFOS, 3, taps=(1, 3))
    for parameter in decoder.parameters():
        nn.init.normal_(parameter)
    objective = Reconstruction(decoder, INFOS, 8, Masking(0.5, 2))
    maps = [torch.randn(2, i.channels, 8 // i.stride, 8 // i.stride) for i in INFOS]
    _, values = objective(lambda _image, _visible: maps, make_batch(2, 8))
    assert set(values) == {"rms_F1", "rms_F3"}
    for name, branch in zip(("rms_F1", "rms_F3"), decoder.branches(maps), strict=True):
        expected = branch.square().mean().sqrt().item()
        assert values[name].item() == pytest.approx(expected, rel=1e-5)
        assert not values[name].requires_grad
