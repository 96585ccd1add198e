import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from mae_nas.batch import Batch
from mae_nas.masking import Masking
from mae_nas.objectives import Reconstruction
from mae_nas.randomness import Purpose, derive_key
from mae_nas.search import SearchModule, take_reading
from mae_nas.spaces import S3
from mae_nas.stepping import NonFiniteLossError

Make = Callable[..., SearchModule]
SEED = 3  # of the data that `fit` trains on


def values_of(tensors: list[nn.Parameter] | list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def all_equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


# Who is stepped -----------------------------------------------------------------------------------


def test_parameters_are_split_by_module_not_by_name(smooth: Make) -> None:
    module = smooth()
    assert {id(p) for p in module.alphas} == {id(p) for p in module.relaxation.parameters()}
    assert any(p is module.objective.alpha for p in module.weights)
    ours = [*module.alphas, *module.weights]
    assert len({id(p) for p in ours}) == len(ours) == len(list(module.parameters()))
    groups = [o.param_groups[0]["params"] for o in module.configure_optimizers()]
    assert [len(group) for group in groups] == [len(module.weights), len(module.alphas)]


@pytest.mark.parametrize("second_order", [False, True])
def test_each_step_leaves_the_other_players_parameters_alone(
    small: Make, fit: Make, at_start: Make, second_order: bool
) -> None:
    seen = []

    def step(module: SearchModule, batch: dict[str, list[Batch]]) -> None:
        weights, alphas = values_of(module.weights), values_of(module.alphas)
        gradients = [weight.grad for weight in module.weights]
        module.step_architecture(batch["arch"], batch["weights"])
        assert all_equal(values_of(module.weights), weights)
        assert not all_equal(values_of(module.alphas), alphas)
        assert all(w.grad is old for w, old in zip(module.weights, gradients, strict=True))
        alphas = values_of(module.alphas)
        module.step_weights(batch["weights"])
        assert all_equal(values_of(module.alphas), alphas)
        assert all(alpha.grad is None and alpha.requires_grad for alpha in module.alphas)
        moved = zip(weights, values_of(module.weights), strict=True)
        assert sum(not torch.equal(before, after) for before, after in moved) > len(weights) / 2
        seen.append(module.global_step)

    # Twice: the second unrolled step has momentum to look ahead by.
    fit(small(second_order=second_order), 2, [at_start(step)])
    assert seen == [0, 1]


def test_second_order_step_leaves_running_statistics_alone(
    small: Make, fit: Make, at_start: Make
) -> None:
    module = small(second_order=True)
    seen = []

    def step(_: SearchModule, batch: dict[str, list[Batch]]) -> None:
        before = values_of(list(module.buffers()))
        module.step_architecture(batch["arch"], batch["weights"])
        after = values_of(list(module.buffers()))
        assert all_equal(before, after)

        def fail(*_: object) -> None:
            seen.append(len(seen))
            if len(seen) == 3:
                raise RuntimeError("out of memory")

        handle = module.supernet.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            module.step_architecture(batch["arch"], batch["weights"])
        handle.remove()
        assert all_equal(values_of(list(module.buffers())), before)

    fit(module, 1, [at_start(step)])
    assert len(seen) == 3


def test_second_order_gradient_is_the_one_of_its_formula(
    smooth: Make, fit: Make, at_start: Make
) -> None:
    """Against autograd through a virtual step written here, momentum and weight decay included."""
    module = smooth(second_order=True)
    # α's optimizer steps by the bare gradient, so that the step shows it.
    module.settings.__dict__["arch_optimizer"] = partial(torch.optim.SGD, lr=1.0)
    errors = []

    def step(_: SearchModule, batch: dict[str, list[Batch]]) -> None:
        names = {id(p): name for name, p in module.named_parameters()}
        state = module.optimizer_pair[0].state
        loss = module.loss(batch["weights"][0])[0]
        gradients = torch.autograd.grad(loss, module.weights, create_graph=True)
        moved = {}
        for w, g in zip(module.weights, gradients, strict=True):
            buffer = state[w].get("momentum_buffer", torch.zeros_like(w))
            moved["module." + names[id(w)]] = w - 0.025 * (g + 0.9 * buffer + 3e-4 * w)
        value = torch.func.functional_call(LossOf(module), moved, (batch["arch"][0],))
        expected = torch.autograd.grad(value, module.alphas)
        before = values_of(module.alphas)
        module.step_architecture(batch["arch"], batch["weights"])
        for old, new, gradient in zip(before, module.alphas, expected, strict=True):
            moved_by = old - new.detach()
            errors.append(float((moved_by - gradient).norm() / gradient.norm()))

    fit(module, 3, [at_start(step)], precision="64-true")
    assert len(errors) == 6
    assert max(errors) < 1e-4


class LossOf(nn.Module):
    """The loss as a function of replaceable weights."""

    def __init__(self, module: SearchModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        return self.module.loss(batch)[0]


def test_second_order_needs_sgd(smooth: Make, fit: Make) -> None:
    module = smooth(second_order=True)
    module.settings.__dict__["weight_optimizer"] = torch.optim.Adam
    with pytest.raises(ValueError, match=r"search\.second_order: looks ahead by a step of SGD "):
        fit(module, 1)


def test_alpha_without_influence_is_untouched_and_its_cell_undetermined(
    small: Make, fit: Make
) -> None:
    module = small(taps=(1,), arch={"weight_decay": 0.5, "lr": 0.1})
    before = {kind: alpha.detach().clone() for kind, alpha in module.relaxation.alphas.items()}
    fit(module, 2)
    assert torch.equal(module.relaxation.alphas["reduce"], before["reduce"])
    assert not torch.equal(module.relaxation.alphas["normal"], before["normal"])
    assert "grad_norm_alpha_normal" in module.values
    assert "grad_norm_alpha_reduce" not in module.values
    reading = take_reading(module, S3(), [batch_of(module)], [])
    assert reading.undetermined == ["reduce"]
    assert take_reading(small(), S3(), [batch_of(module)], []).undetermined == []


def batch_of(module: SearchModule, size: int = 3) -> Batch:
    del module
    generator = torch.Generator().manual_seed(7)
    image = torch.randn(size, 3, 16, 16, generator=generator)
    return Batch(image, torch.arange(size), 12345)


# When -------------------------------------------------------------------------------------------


def test_learning_rate_is_darts_cosine_per_epoch(smooth: Make, fit: Make, at_end: Make) -> None:
    rates: list[float] = []
    at = at_end(lambda module: rates.append(module.optimizer_pair[0].param_groups[0]["lr"]))
    fit(smooth(epochs=50, steps_per_epoch=2), 100, [at])
    assert rates[::2] == rates[1::2]
    epochs = rates[::2]
    assert epochs[0] == 0.025
    assert epochs[1] == pytest.approx(0.0249763, abs=1e-7)
    assert epochs[25] == pytest.approx(0.013, abs=1e-12)
    assert epochs[49] == pytest.approx(0.0010237, abs=1e-7)
    wave = torch.optim.lr_scheduler.CosineAnnealingLR
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.025)
    schedule = wave(optimizer, 50, eta_min=0.001)
    for rate in epochs:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_alpha_waits_for_the_warm_up_epochs(smooth: Make, fit: Make, at_end: Make) -> None:
    module = smooth(steps_per_epoch=3, warmup_epochs=2)
    start = values_of(module.alphas)
    seen = []
    at = at_end(lambda m: seen.append((all_equal(values_of(m.alphas), start), set(m.values))))
    fit(module, 8, [at])
    assert [untouched for untouched, _ in seen] == [True] * 6 + [False] * 2
    assert all("arch_loss" not in values for _, values in seen[:6])
    assert all("arch_loss" in values for _, values in seen[6:])
    assert all("weight_loss" in values for _, values in seen)


def test_readings_count_for_the_verdict_after_the_warm_up(small: Make, fit: Make) -> None:
    def reading_after(steps: int) -> bool:
        module = fit(small(steps_per_epoch=1, warmup_epochs=1), steps)
        return take_reading(module, S3(), [batch_of(module)], []).warmed_up

    assert not reading_after(1)
    assert reading_after(2)


# How far ----------------------------------------------------------------------------------------


def test_weight_gradient_is_clipped_and_reported_unclipped(
    smooth: Make, fit: Make, at_start: Make, smooth_objective: Callable[..., Reconstruction]
) -> None:
    plain = {"momentum": 0.0, "weight_decay": 0.0}
    objective = smooth_objective(scale=50.0)
    module = smooth(objective=objective, grad_clip=0.25, weights=plain, warmup_epochs=1)
    before: list[Tensor] = []
    gradients: list[Tensor] = []

    def look(_: SearchModule, batch: dict[str, list[Batch]]) -> None:
        before.extend(values_of(module.weights))
        loss = module.loss(batch["weights"][0])[0]
        gradients.extend(torch.autograd.grad(loss, module.weights))

    fit(module, 1, [at_start(look)])
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert norm > 0.5  # else nothing is clipped
    assert float(module.values["grad_norm_weights"]) == pytest.approx(norm, rel=1e-5)
    for now, old, gradient in zip(module.weights, before, gradients, strict=True):
        expected = old - 0.025 * gradient * 0.25 / norm
        torch.testing.assert_close(now.detach(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("accumulate", [2, 8])
def test_accumulated_steps_equal_the_whole_batch(smooth: Make, fit: Make, accumulate: int) -> None:
    """Exactly for this network, which has no BatchNorm."""
    whole = fit(smooth(), 4, batch_size=8, precision="64-true")
    parts = fit(smooth(), 4, batch_size=8, accumulate=accumulate, precision="64-true")
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    losses = ("weight_loss", "arch_loss", "error")
    for name in (*losses, "grad_norm_weights", "grad_norm_alpha_normal"):
        torch.testing.assert_close(whole.values[name], parts.values[name], rtol=1e-9, atol=1e-12)


def test_accumulated_second_order_steps_equal_the_whole_batch(smooth: Make, fit: Make) -> None:
    whole = fit(smooth(second_order=True), 3, batch_size=8, precision="64-true")
    parts = fit(smooth(second_order=True), 3, batch_size=8, accumulate=4, precision="64-true")
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


# Masks ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counting(Masking):
    """Remembers which masks were drawn."""

    drawn: ClassVar[list[tuple[int, Tensor]]] = []
    patch_size: int = field(default=4)

    def sample(self, key: int, index: Tensor, side: int) -> Tensor:
        hidden = super().sample(key, index, side)
        self.drawn.append((key, hidden))
        return hidden


@pytest.mark.parametrize(("second_order", "of_weights", "of_arch"), [(False, 1, 1), (True, 4, 1)])
def test_a_step_uses_one_mask_per_batch(
    small: Make, fit: Make, second_order: bool, of_weights: int, of_arch: int
) -> None:
    Counting.drawn.clear()
    fit(small(masking=Counting(), second_order=second_order), 2)
    for step in range(2):
        for purpose, times in ((Purpose.WEIGHTS, of_weights), (Purpose.ARCHITECTURE, of_arch)):
            key = derive_key(SEED, purpose, step)
            masks = [hidden for used, hidden in Counting.drawn if used == key]
            assert len(masks) == times
            assert all(torch.equal(masks[0], other) for other in masks)
    assert len(Counting.drawn) == 2 * (of_weights + of_arch)
    assert len({hidden.numpy().tobytes() for _, hidden in Counting.drawn}) == 4


# Trouble ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", [Purpose.WEIGHTS, Purpose.ARCHITECTURE])
def test_first_bad_step_is_remembered_and_named(
    smooth: Make, fit: Make, smooth_objective: Callable[..., Reconstruction], purpose: Purpose
) -> None:
    bad = [derive_key(SEED, purpose, step) for step in (2, 4)]
    module = fit(smooth(objective=smooth_objective(bad_keys=bad)), 6)
    with pytest.raises(NonFiniteLossError, match=r"at step 2 \(seed 41\)"):
        module.check_state(41)


def test_finite_losses_are_no_error(smooth: Make, fit: Make) -> None:
    fit(smooth(), 3).check_state(0)


# Precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize(
    ("precision", "wide"),
    [("64-true", torch.float64), ("bf16-mixed", torch.float32), ("16-mixed", torch.float32)],
)
def test_alpha_and_loss_keep_their_precision(
    small: Make, fit: Make, precision: str, wide: torch.dtype, second_order: bool
) -> None:
    module = fit(small(second_order=second_order), 2, precision=precision)
    assert {alpha.dtype for alpha in module.alphas} == {wide}
    assert {weight.dtype for weight in module.weights} == {wide}
    assert {module.values[name].dtype for name in ("weight_loss", "arch_loss")} == {wide}
    assert all(value.isfinite() for value in module.values.values())


# Reading ----------------------------------------------------------------------------------------


def test_reading_disturbs_nothing(small: Make, fit: Make) -> None:
    module = fit(small(), 2)
    module.train()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    step_values = dict(module.values)
    generator = torch.get_rng_state()
    first = take_reading(module, S3(), [batch_of(module, 3), batch_of(module, 2)], [])
    second = take_reading(module, S3(), [batch_of(module, 3), batch_of(module, 2)], [])
    assert first == second
    assert module.training
    assert all(m.training for m in chain(module.supernet.modules(), module.objective.modules()))
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    assert module.values == step_values
    assert torch.equal(torch.get_rng_state(), generator)


def test_held_out_loss_weighs_images_equally_and_uses_running_statistics(small: Make) -> None:
    module = small()
    big, little = batch_of(module, 3), batch_of(module, 2)
    module.eval()
    with torch.no_grad():
        expected = (3 * module.loss(big)[0] + 2 * module.loss(little)[0]) / 5
    module.train()
    assert module.held_out_loss([big, little]) == pytest.approx(float(expected), rel=1e-6)


def test_alpha_is_outside_what_ddp_would_own(small: Make) -> None:
    module = small()
    ignored = set(module._ddp_params_and_buffers_to_ignore)  # type: ignore[arg-type]
    owned = {name for name, _ in module.named_parameters()} - ignored
    assert ignored == {f"relaxation.alphas.{kind}" for kind in ("normal", "reduce")}
    assert len(owned) == len(module.weights)
