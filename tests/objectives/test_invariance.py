"""What no hidden pixel may reach, and what no order or interleaving may change: whole searches."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.utils.checkpoint import checkpoint

from mae_nas.batch import Batch
from mae_nas.decoders import HierarchicalDecoder, UNetDecoder
from mae_nas.masking import Masking, VisibleMap, to_pixels
from mae_nas.objectives import Encode, Objective, Reconstruction
from mae_nas.relaxations import DARTS
from mae_nas.spaces import S0, S2, SearchSpace
from mae_nas.supernet import Supernet, SupernetSize

Parts = tuple[DARTS, Supernet, Reconstruction]
MakeSearch = Callable[..., Parts]
MakeBatch = Callable[..., Batch]
Mode = Literal["dense", "sparse"]
OnFive = Callable[[type[SearchSpace]], SearchSpace]

DECODERS = {
    "hierarchical": partial(HierarchicalDecoder, kernel=3),
    "pointwise": partial(HierarchicalDecoder, kernel=1),
    "simmim": partial(HierarchicalDecoder, taps=(3,), kernel=1, upsample="shuffle"),
    "unet": partial(UNetDecoder, width=8),
}


def encoder(relaxation: DARTS, supernet: Supernet) -> Encode:
    mixtures = relaxation.mixture()
    return lambda image, visible: supernet(image, mixtures, visible)


def hidden_of(objective: Reconstruction, batch: Batch) -> Tensor:
    patches = objective.masking.sample(batch.key, batch.index, objective.side)
    return to_pixels(patches, objective.masking.patch_size)


def observe(parts: Parts, batch: Batch, target: Tensor) -> list[Tensor]:
    """Features, prediction, and gradients of α and w, of one training step."""
    relaxation, supernet, objective = parts
    features: list[Tensor] = []

    def encode(image: Tensor, visible: VisibleMap | None) -> Sequence[Tensor]:
        features.extend(encoder(relaxation, supernet)(image, visible))
        return features

    output = objective.reconstruct(encode, batch)
    loss = objective.error(output.prediction, target, output.hidden)
    inputs = [*relaxation.parameters(), *supernet.parameters(), *objective.parameters()]
    return [*features, output.prediction, loss, *torch.autograd.grad(loss, inputs)]


# Sharp test 1.
@pytest.mark.parametrize("mode", ["dense", "sparse"])
@pytest.mark.parametrize("patch", [2, 4, 8, 16])
@pytest.mark.parametrize("junk", [torch.nan, 1e30])
def test_no_hidden_pixel_reaches_features_prediction_or_gradients(
    mode: Mode,
    patch: int,
    junk: float,
    make_search: MakeSearch,
    make_batch: MakeBatch,
    on_five_edges: OnFive,
) -> None:
    side = 32 if patch == 16 else 16
    masking = Masking(0.5, patch, mode)
    decoder = DECODERS["hierarchical"]
    parts = make_search(on_five_edges(S0), side, 2, masking=masking, decoder=decoder)
    batch = make_batch(2, side, 2)
    hidden = hidden_of(parts[2], batch)
    spoiled = batch._replace(image=batch.image.masked_fill(hidden, junk))
    clean = observe(parts, batch, batch.image)
    again = observe(parts, spoiled, batch.image)
    assert all(value.isfinite().all() for value in clean)
    assert all(map(torch.equal, again, clean))


def test_visible_pixels_do_reach_them(make_search: MakeSearch, make_batch: MakeBatch) -> None:
    parts = make_search(S2())
    batch = make_batch()
    shifted = batch._replace(image=batch.image.where(hidden_of(parts[2], batch), 0.1))
    pairs = zip(
        observe(parts, batch, batch.image), observe(parts, shifted, batch.image), strict=True
    )
    assert not any(torch.equal(a, b) for a, b in pairs)


# Sharp test 13: sparse masking blanks what it hides by itself, dense masking does not.
@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_the_fill_value_matters_in_dense_mode_alone(
    mode: Mode, make_search: MakeSearch, make_batch: MakeBatch, on_five_edges: OnFive
) -> None:
    parts = make_search(
        on_five_edges(S0), masking=Masking(0.5, 4, mode), decoder=DECODERS["hierarchical"]
    )
    relaxation, supernet, objective = parts
    batch = make_batch()
    hidden = hidden_of(objective, batch)

    def predict(fill: float) -> Tensor:
        def encode(image: Tensor, visible: VisibleMap | None) -> Sequence[Tensor]:
            filled = image.where(~hidden, fill)
            return encoder(relaxation, supernet)(filled, visible)

        return objective.reconstruct(encode, batch).prediction

    reference = predict(0.0)
    for fill in (0.3, 5.0):
        assert torch.equal(predict(fill), reference) == (mode == "sparse")


def accepted() -> list[tuple[str, Mode, int]]:
    every = product(DECODERS, ("dense", "sparse"), (2, 4))
    refused = {("pointwise", "sparse", 4), ("simmim", "sparse", 4)}  # patch ≥ stride of F3
    return [case for case in every if case not in refused]  # type: ignore[misc]


# Sharp test 9.
@pytest.mark.parametrize(("name", "mode", "patch"), accepted())
def test_every_accepted_configuration_teaches_both_cells(
    name: str,
    mode: Mode,
    patch: int,
    make_search: MakeSearch,
    make_batch: MakeBatch,
    on_five_edges: OnFive,
) -> None:
    parts = make_search(
        on_five_edges(S0), masking=Masking(0.5, patch, mode), decoder=DECODERS[name]
    )
    relaxation, supernet, objective = parts
    loss, _ = objective(encoder(relaxation, supernet), make_batch())
    normal, reduce = torch.autograd.grad(loss, list(relaxation.parameters()))
    assert normal.abs().max() > 1e-9
    assert reduce.abs().max() > 1e-9


@pytest.mark.parametrize("name", ["pointwise", "simmim"])
def test_the_refused_configurations_are_those_that_learn_nothing(
    name: str, make_search: MakeSearch, make_batch: MakeBatch
) -> None:
    # Built with patch 2, which is accepted, then masked by 4: what the refusal protects from.
    parts = make_search(S2(), masking=Masking(0.5, 2, "sparse"), decoder=DECODERS[name])
    relaxation, supernet, objective = parts
    with pytest.raises(ValueError, match="learns nothing"):
        make_search(S2(), masking=Masking(0.5, 4, "sparse"), decoder=DECODERS[name])
    objective.masking = Masking(0.5, 4, "sparse")
    loss, _ = objective(encoder(relaxation, supernet), make_batch())
    inputs = [*relaxation.parameters(), *supernet.parameters()]
    assert not any(g.any() for g in torch.autograd.grad(loss, inputs))


# Sharp test 9.
@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_the_first_tap_alone_teaches_no_reduction(
    mode: Mode, make_search: MakeSearch, make_batch: MakeBatch
) -> None:
    decoder = partial(HierarchicalDecoder, taps=(1,), kernel=3)
    parts = make_search(S2(), masking=Masking(0.5, 4, mode), decoder=decoder)
    relaxation, supernet, objective = parts
    assert objective.stages == 1
    loss, _ = objective(encoder(relaxation, supernet), make_batch())
    normal, reduce = torch.autograd.grad(loss, list(relaxation.parameters()), allow_unused=True)
    assert normal.abs().max() > 0
    assert reduce is None


# Sharp test 17.
@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_order_within_the_batch_does_not_matter(
    mode: Mode, make_search: MakeSearch, make_batch: MakeBatch
) -> None:
    parts = make_search(S2(), masking=Masking(0.5, 2, mode), decoder=DECODERS["hierarchical"])
    relaxation, supernet, objective = parts
    encode = encoder(relaxation, supernet)
    batch = make_batch(5)
    order = torch.tensor([3, 1, 4, 0, 2])
    shuffled = Batch(batch.image[order], batch.index[order], batch.key)
    straight, mixed = objective.reconstruct(encode, batch), objective.reconstruct(encode, shuffled)
    assert torch.equal(mixed.hidden, straight.hidden[order])
    assert (mixed.prediction - straight.prediction[order]).abs().max() < 1e-5
    copies = Batch(batch.image[[0] * 4], batch.index[[0] * 4], batch.key)
    single = Batch(batch.image[:1], batch.index[:1], batch.key)
    many = objective.reconstruct(encode, copies).prediction
    one = objective.reconstruct(encode, single).prediction
    assert (many - one).abs().max() < 1e-5


# Sharp test 17: visibility travels as an argument, so nothing stale can be left behind.
@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_interleaved_searches_and_recomputed_activations_change_nothing(
    mode: Mode, make_search: MakeSearch, make_batch: MakeBatch
) -> None:
    make = partial(make_search, S2(), decoder=DECODERS["hierarchical"])
    relaxation, supernet, objective = make(masking=Masking(0.5, 4, mode))
    other = make(masking=Masking(0.25, 8, "sparse"))
    batch, other_batch = make_batch(key=1), make_batch(key=2)
    mixtures = relaxation.mixture()
    inputs = [*relaxation.parameters(), *supernet.parameters()]

    def recomputed(image: Tensor, visible: VisibleMap | None) -> Sequence[Tensor]:
        # recomputes the forward pass during the backward pass, after another mask was in use
        return checkpoint(
            lambda x: tuple(supernet(x, mixtures, visible)), image, use_reentrant=False
        )

    plain, _ = objective(lambda image, visible: supernet(image, mixtures, visible), batch)
    expected = torch.autograd.grad(plain, inputs, retain_graph=True)
    loss, _ = objective(recomputed, batch)
    other[2](encoder(*other[:2]), other_batch)[0].backward()
    assert torch.equal(loss, plain)
    assert all(map(torch.equal, torch.autograd.grad(loss, inputs), expected))


# Sharp test 16.
@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_half_precision_agrees_with_single(
    mode: Mode, make_search: MakeSearch, make_batch: MakeBatch, on_five_edges: OnFive
) -> None:
    parts = make_search(
        on_five_edges(S0), masking=Masking(0.5, 4, mode), decoder=DECODERS["hierarchical"]
    )
    relaxation, supernet, objective = parts
    batch = make_batch(8)
    alphas = list(relaxation.parameters())
    exact, _ = objective(encoder(relaxation, supernet), batch)
    gradient = torch.autograd.grad(exact, alphas)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(encoder(relaxation, supernet), batch)
    assert loss.dtype == torch.float32
    assert abs(loss - exact) < 0.01 * exact
    half = torch.autograd.grad(loss, alphas)
    for a, b in zip(half, gradient, strict=True):
        assert a.dtype == torch.float32
        assert cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.9


# Sharp test 16.
@pytest.mark.parametrize("mode", ["dense", "sparse"])
@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize("is_half", [False, True])
def test_constant_images_give_finite_losses_and_gradients(
    mode: Mode, norm_pix: bool, is_half: bool, make_search: MakeSearch, on_five_edges: OnFive
) -> None:
    relaxation, supernet, objective = make_search(
        on_five_edges(S0),
        masking=Masking(0.5, 4, mode),
        decoder=DECODERS["hierarchical"],
        objective=partial(Reconstruction, norm_pix=norm_pix),
    )
    batch = Batch(torch.full((2, 3, 16, 16), 0.7), torch.arange(2), 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        loss, _ = objective(encoder(relaxation, supernet), batch)
    loss.backward()
    assert loss.isfinite()
    for parameter in [*relaxation.parameters(), *supernet.parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize(("side", "channels"), [(16, 1), (64, 3), (160, 2)])
def test_whole_pass_at_other_sizes_and_channels(
    side: int, channels: int, make_search: MakeSearch, make_batch: MakeBatch
) -> None:
    for mode in ("dense", "sparse"):
        relaxation, supernet, objective = make_search(
            S2(), side, channels, SupernetSize(2, 3), Masking(0.5, 8, mode)
        )
        assert isinstance(objective, Objective)
        batch = make_batch(2, side, channels)
        output = objective.reconstruct(encoder(relaxation, supernet), batch)
        assert output.prediction.shape == batch.image.shape
        assert output.hidden.shape == (2, 1, side, side)
