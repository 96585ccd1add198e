import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mae_nas.batch import Batch
from mae_nas.genotype import PUBLISHED
from mae_nas.network import DerivedNetwork, NetworkSize
from mae_nas.network.regularisers import cutout, keep_paths
from mae_nas.network.training import Recipe, TrainModule, TrainReading, take_train_reading

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def module(epochs: int = 4, **recipe: object) -> TrainModule:
    size = NetworkSize(4, 3, "cifar")
    network = DerivedNetwork(PUBLISHED["DARTS_V2"], size, 2, 8, 7)
    return TrainModule(network, Recipe(SGD, **recipe), epochs, 5)  # type: ignore[arg-type]


def batch(images: int = 6) -> Batch:
    image = torch.randn(images, 2, 8, 8)
    return Batch(image, torch.arange(images), 11, torch.arange(images) % 7)


def entropy(scores: Tensor, label: Tensor, smoothing: float) -> Tensor:
    """By its definition: the target is 1 − s at the label, and s / K everywhere."""
    logs = scores - scores.exp().sum(1, keepdim=True).log()
    target = torch.full_like(scores, smoothing / scores.shape[1])
    target[torch.arange(len(label)), label] += 1 - smoothing
    return -(target * logs).sum(1).mean()


def test_loss_is_the_cross_entropy_of_both_heads() -> None:
    made, given = module(cutout=3, label_smoothing=0.1, auxiliary=0.4, drop_path=0.0), batch()
    twin = module()
    twin.network.load_state_dict(made.network.state_dict())
    loss, values = made.loss(given)
    main, auxiliary = twin.network.scores(cutout(given, 3), None)
    assert auxiliary is not None
    assert given.label is not None
    wanted = entropy(main, given.label, 0.1) + 0.4 * entropy(auxiliary, given.label, 0.1)
    torch.testing.assert_close(loss, wanted)
    right = [int(row.argmax()) == label for row, label in zip(main, given.label, strict=True)]
    assert float(values["accuracy"]) == pytest.approx(sum(right) / 6)


def test_drop_path_grows_with_the_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    made, given = module(drop_path=0.8, cutout=0, auxiliary=0.0), batch()
    twin = module()
    for epoch in (0, 1, 3):
        monkeypatch.setattr(TrainModule, "epoch", epoch)
        twin.network.load_state_dict(made.network.state_dict())
        loss, _ = made.loss(given)
        keep = keep_paths(given, made.network.paths, 0.8 * epoch / 4)
        assert (keep is None) == (epoch == 0)
        main = twin.network.scores(given.image, keep).main
        torch.testing.assert_close(loss, functional.cross_entropy(main, given.label))


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("cosine", [0.5, 1.0, 1.0, 1.0, 0.75, 0.75, 0.25, 0.25]),
        ("linear", [0.5, 1.0, 1.0, 1.0, 2 / 3, 2 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_the_rate_rises_by_step_and_falls_by_epoch(schedule: str, wanted: list[float]) -> None:
    recipe = Recipe(SGD, schedule, warmup_epochs=1)  # type: ignore[arg-type]
    assert [recipe.rate(step, 4, 2) for step in range(8)] == pytest.approx(wanted)


def test_cosine_is_that_of_darts() -> None:
    rates = [0.025 * Recipe(SGD).rate(step, 600, 1) for step in (0, 1, 300, 599)]
    wanted = [0.0125 * (1 + math.cos(math.pi * e / 600)) for e in (0, 1, 300, 599)]
    assert rates == pytest.approx(wanted)


def test_judging_counts_every_image_once_by_running_statistics() -> None:
    made = module()
    made.network.train()
    made.network(torch.randn(8, 2, 8, 8))
    images, labels = torch.randn(11, 2, 8, 8), torch.arange(11) % 7
    parts = [slice(0, 4), slice(4, 8), slice(8, 11)]
    batches = [Batch(images[p], torch.arange(11)[p], 0, labels[p]) for p in parts]
    found = made.judge(batches)
    assert made.network.training
    scores = made.network.eval()(images)
    wanted = torch.zeros(7, 7, dtype=torch.int64)
    top5 = 0
    for row, label in zip(scores, labels, strict=True):
        wanted[label, int(row.argmax())] += 1
        top5 += int((row > row[label]).sum()) < 5
    assert torch.equal(found.confusion, wanted)
    assert (found.images, found.top1, found.top5) == (11, int(wanted.trace()), top5)
    assert found.loss == pytest.approx(float(entropy(scores, labels, 0.0).detach()), rel=1e-5)
    reading = take_train_reading_of(made, batches)
    assert TrainReading.from_dict(reading.to_dict()) == reading
    assert reading.top1 == found.top1 / 11


def take_train_reading_of(made: TrainModule, batches: list[Batch]) -> TrainReading:
    return take_train_reading(made, batches, "test")


def test_the_average_follows_the_weights_and_is_what_is_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = module(ema=0.9)
    monkeypatch.setattr(TrainModule, "global_step", 90)
    assert made.average is not None
    start = [weight.clone() for weight in made.network.parameters()]
    for weight in made.network.parameters():
        weight.data += 1
    made.network.backbone.stem.norm0.running_mean += 3  # type: ignore[operator]
    made._follow(made.average)
    for first, mine in zip(start, made.average.parameters(), strict=True):
        torch.testing.assert_close(mine, first + 0.1)
        assert not mine.requires_grad
    for mine, theirs in zip(made.average.buffers(), made.network.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert made.judged is made.average


def test_an_average_begins_with_what_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    made = module(ema=0.9999)
    assert made.average is not None
    start = [weight.clone() for weight in made.network.parameters()]
    for weight in made.network.parameters():
        weight.data += 1
    monkeypatch.setattr(TrainModule, "global_step", 10)
    made._follow(made.average)
    for first, mine in zip(start, made.average.parameters(), strict=True):
        torch.testing.assert_close(mine, first + 0.5)


def test_drop_path_leaves_half_precision_as_it_is() -> None:
    made, given = module(), batch()
    keep = keep_paths(given, made.network.paths, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        maps = made.network._maps(given.image, keep)
    assert {m.dtype for m in maps} == {torch.bfloat16}


def test_the_hardest_step_drops_paths_from_the_start() -> None:
    made = module(drop_path=0.5)
    assert made._ramp == 0
    made.work_hardest()
    assert made._ramp == 1


def test_a_network_with_noise_is_judged_alike_twice() -> None:
    size = NetworkSize(4, 3, "cifar", auxiliary=False)
    network = DerivedNetwork(PUBLISHED["DARTSminus_cifar10_s4_0"], size, 2, 8, 7)
    made = TrainModule(network, Recipe(SGD), 2, 5)
    given = batch()
    assert made.judge([given]).loss == made.judge([given]).loss


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"schedule": "step"}, "schedule 'step': must be cosine or linear"),
        ({"drop_path": 1.0}, "drop_path 1.0: must lie in"),
        ({"ema": math.nan}, "ema nan: must lie in"),
        ({"mixup": -1.0}, "mixup -1.0: must be 0 or more"),
        ({"grad_clip": 0.0}, "grad_clip 0.0: must be positive"),
    ],
)
def test_recipes_out_of_range_are_refused(values: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Recipe(SGD, **values)  # type: ignore[arg-type]


def test_weights_are_the_networks_alone() -> None:
    made = module(ema=0.5)
    assert {id(w) for w in made.weights} == {id(w) for w in made.network.parameters()}
    assert isinstance(made.trained[0], nn.Module)
