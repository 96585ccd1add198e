"""What every objective must do: adding one to the package adds its tests."""

import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor

import mae_nas.objectives
from mae_nas.backbone import plan_backbone
from mae_nas.batch import Batch
from mae_nas.decoders import HierarchicalDecoder
from mae_nas.masking import Masking
from mae_nas.objectives import Encode, Objective
from mae_nas.relaxations import DARTS
from mae_nas.spaces import S2
from mae_nas.supernet import ReferenceCell, Supernet, SupernetSize

MakeBatch = Callable[..., Batch]


def objectives() -> list[type[Objective]]:
    found: set[type[Objective]] = set()
    for info in pkgutil.walk_packages(mae_nas.objectives.__path__, "mae_nas.objectives."):
        members = inspect.getmembers(import_module(info.name), inspect.isclass)
        found |= {c for _, c in members if issubclass(c, Objective) and not inspect.isabstract(c)}
    return sorted(found, key=lambda c: c.__name__)


every_objective = pytest.mark.parametrize("objective", objectives())
every_mode = pytest.mark.parametrize("mode", ["dense", "sparse"])


def build(objective: type[Objective], mode: str, side: int = 16, channels: int = 3) -> Objective:
    """Give the constructor, by name, the facts that it asks for."""
    features = plan_backbone(4, 3, "cifar").features
    facts = {
        "features": features,
        "channels": channels,
        "side": side,
        "space": S2(),
        "masking": Masking(0.5, 4, mode),  # type: ignore[arg-type]
        "decoder": HierarchicalDecoder(features, channels),
        "seed": 0,
    }
    wanted = inspect.signature(objective).parameters
    return objective(**{name: fact for name, fact in facts.items() if name in wanted})


def supernet(stages: int, channels: int = 3) -> tuple[DARTS, Supernet]:
    plan = SupernetSize(4, 3).plan(S2(), 16)
    return DARTS(S2()), Supernet(S2(), channels, stages, plan, ReferenceCell)


def encoder(relaxation: DARTS, net: Supernet) -> Encode:
    mixtures = relaxation.mixture()
    return lambda image, visible: net(image, mixtures, visible)


def test_the_package_has_objectives() -> None:
    assert "Reconstruction" in {c.__name__ for c in objectives()}


@every_objective
@every_mode
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [16, 24])
def test_loss_is_a_scalar_and_teaches_everything(
    objective: type[Objective], mode: str, channels: int, side: int, make_batch: MakeBatch
) -> None:
    made = build(objective, mode, side, channels)
    assert 1 <= made.stages <= 3
    relaxation, net = supernet(made.stages, channels)
    batch = make_batch(3, side, channels)
    image = batch.image.clone()
    loss, values = made(encoder(relaxation, net), batch)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    for name, value in values.items():
        assert value.shape == (), name
        assert not value.requires_grad, name
    loss.backward()
    modules = {"α": relaxation, "supernet": net, "objective": made}
    for where, module in modules.items():
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, f"{where} {name}"
            assert parameter.grad.isfinite().all(), f"{where} {name}"
    assert torch.equal(batch.image, image), "the batch is not the objective's to change"


@every_objective
@every_mode
def test_loss_is_a_function_of_the_batch(
    objective: type[Objective], mode: str, make_batch: MakeBatch
) -> None:
    made = build(objective, mode)
    relaxation, net = supernet(made.stages)
    batch = make_batch(3)

    def loss(of: Batch) -> Tensor:
        return made(encoder(relaxation, net), of)[0]

    first = loss(batch)
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(loss(batch), first)
    torch.set_rng_state(state)
    assert not torch.equal(loss(batch._replace(key=batch.key + 1)), first)
    labelled = batch._replace(label=torch.arange(3))
    assert torch.equal(loss(labelled), first)


@every_objective
@every_mode
def test_yardsticks_are_numbers_and_leave_no_trace(
    objective: type[Objective], mode: str, make_batch: MakeBatch
) -> None:
    made = build(objective, mode)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    batches = [make_batch(3), make_batch(4, key=8)]
    yardsticks = made.yardsticks(batches)
    assert all(isinstance(value, float) and value >= 0 for value in yardsticks.values())
    assert yardsticks == made.yardsticks(batches)
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name])


@every_objective
@every_mode
def test_picture_has_the_shape_of_the_batch(
    objective: type[Objective], mode: str, make_batch: MakeBatch
) -> None:
    made = build(objective, mode)
    relaxation, net = supernet(made.stages)
    picture = made.picture(encoder(relaxation, net), make_batch(2))
    if picture is not None:
        prediction, hidden = picture
        assert prediction.shape == (2, 3, 16, 16)
        assert hidden.shape == (2, 1, 16, 16)
        assert hidden.dtype == torch.bool


@every_objective
@every_mode
def test_state_survives_a_round_trip(
    objective: type[Objective], mode: str, make_batch: MakeBatch
) -> None:
    first, second = build(objective, mode), build(objective, mode)
    relaxation, net = supernet(first.stages)
    batch = make_batch(3)
    second.load_state_dict(first.state_dict())
    losses = [made(encoder(relaxation, net), batch)[0] for made in (first, second)]
    assert torch.equal(*losses)


@every_objective
@every_mode
def test_half_precision_gives_a_wide_loss(
    objective: type[Objective], mode: str, make_batch: MakeBatch
) -> None:
    made = build(objective, mode)
    relaxation, net = supernet(made.stages)
    batch = make_batch(6)
    exact = made(encoder(relaxation, net), batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = made(encoder(relaxation, net), batch)[0]
    assert half.dtype == torch.float32
    assert abs(half - exact) < 0.01 * exact
