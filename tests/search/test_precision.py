"""Half precision: one scaler for two optimizers, and what stays wide."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mae_nas.batch import Batch
from mae_nas.masking import BatchNorm, Masking
from mae_nas.randomness import Purpose, derive_key
from mae_nas.search import SearchModule
from mae_nas.stepping import NonFiniteLossError

Make = Callable[..., SearchModule]
Fit = Callable[..., SearchModule]
SEED = 3  # of the data that `fit` trains on
ACCURACY = 10 * 2**-11  # float16 rounds by 2⁻¹¹
CALM = 0.02  # of a loss whose gradients stay within float16 at the first scale
HALVES = [("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)]


@contextmanager
def infinite_gradient(parameter: nn.Parameter) -> Iterator[None]:
    handle = parameter.register_hook(lambda gradient: gradient * torch.inf)
    yield
    handle.remove()


def state_of(module: SearchModule) -> list[Any]:
    """Parameters and optimizer state of w and of α."""
    optimizers, players = module.optimizer_pair, (module.weights, module.alphas)
    states = [[o.state[p] for p in ps] for o, ps in zip(optimizers, players, strict=True)]
    return copy.deepcopy([*zip(players, states, strict=True)])


def unlike(one: Any, other: Any) -> int:  # noqa: ANN401
    """How many tensors in two nested values differ."""
    if isinstance(one, dict):
        return sum(unlike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return sum(map(unlike, one, other))
    return int(not torch.equal(one, other))


@pytest.mark.parametrize("victim", [0, 1], ids=["weights", "alpha"])
@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_skips_only_its_own_players_step(
    smooth: Make,
    fit: Fit,
    at_start: Make,
    at_end: Make,
    smooth_objective: Callable[..., Any],
    victim: int,
    fused: bool,
) -> None:
    options, calm = {"fused": fused}, smooth_objective(scale=CALM)
    module = smooth(objective=calm, weights=options, arch=options, steps_per_epoch=5)
    states, scales = [], []
    planted = infinite_gradient((module.weights, module.alphas)[victim][0])

    def before(_: SearchModule, __: object) -> None:
        states.append(state_of(module))
        if module.global_step == 2:
            planted.__enter__()

    def after(_: SearchModule) -> None:
        if module.global_step == 3:
            planted.__exit__(None, None, None)
        scales.append(float(module.loss_scale))

    fit(module, 4, [at_start(before), at_end(after)], precision="16-mixed", accumulate=2)
    states.append(state_of(module))
    assert scales == [2**16, 2**16, 2**15, 2**15]
    assert module.global_step == 4  # batches, whatever is skipped
    for step in range(4):
        for player, (old, new) in enumerate(zip(states[step], states[step + 1], strict=True)):
            is_skipped = step == 2 and player == victim
            assert (unlike(old[0], new[0]) == 0) == is_skipped, (step, player)
            if step:  # the first step makes the state
                assert (unlike(old[1], new[1]) == 0) == is_skipped, (step, player)
    assert module.scaler is not None
    assert module.scaler.state_dict()["_growth_tracker"] == 1  # updated once a batch
    module.check_state(0)  # normal, nothing to report


@pytest.mark.parametrize("fused", [False, True])  # a fused optimizer unscales by itself
def test_scaled_steps_are_those_of_a_loop_written_out_in_double(
    smooth: Make, fit: Fit, at_start: Make, smooth_objective: Callable[..., Any], fused: bool
) -> None:
    """α by Adam, then w by clipped SGD with momentum: to float16's accuracy, far from its range."""
    objective = smooth_objective(scale=CALM)
    options: dict[str, Any] = {
        "weights": {"lr": 20.0, "fused": fused},
        "arch": {"lr": 5.0, "eps": 0.1},  # large, or Adam would hide how long the gradient is
        "grad_clip": 0.005,
        "steps_per_epoch": 50,
    }

    def make() -> SearchModule:
        return smooth(objective=copy.deepcopy(objective), **options)

    batches: list[dict[str, list[Batch]]] = []
    norms: list[float] = []
    keep = at_start(lambda _, batch: batches.append(copy.deepcopy(batch)))
    start = make()
    found = fit(make(), 5, [keep], precision="16-mixed", accumulate=2)

    exact = make().double()
    first = [torch.zeros_like(p) for p in exact.alphas]
    second, momentum = copy.deepcopy(first), [torch.zeros_like(p) for p in exact.weights]

    def gradients(batch: list[Batch], of: list[nn.Parameter]) -> tuple[Tensor, ...]:
        wide = [Batch(part.image.double(), part.index, part.key) for part in batch]
        losses = [exact.loss(part)[0] for part in wide]
        return torch.autograd.grad(sum(losses) / len(losses), of)  # type: ignore[arg-type]

    for t, batch in enumerate(batches, 1):
        slopes = gradients(batch["arch"], exact.alphas)
        for alpha, g, m, v in zip(exact.alphas, slopes, first, second, strict=True):
            g = g + 1e-3 * alpha.detach()
            m.mul_(0.5).add_(0.5 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            alpha.data -= 5 * (m / (1 - 0.5**t)) / ((v / (1 - 0.999**t)).sqrt() + 0.1)
        lengths = [float(g.norm()) for g in slopes]
        slopes = gradients(batch["weights"], exact.weights)
        norm = torch.cat([g.flatten() for g in slopes]).norm()
        norms.append(float(norm))
        for weight, g, m in zip(exact.weights, slopes, momentum, strict=True):
            m.mul_(0.9).add_(g * min(1.0, 0.005 / norms[-1]) + 3e-4 * weight.detach())
            weight.data -= 20 * m

    assert min(norms) < 0.005 < max(norms)
    assert found.loss_scale == 2**16  # nothing was skipped
    recorded = [found.values[f"grad_norm_{name}"] for name in ("alpha_normal", "alpha_reduce")]
    recorded.append(found.values["grad_norm_weights"])
    for value, expected in zip(recorded, [*lengths, norms[-1]], strict=True):
        assert float(value) == pytest.approx(expected, rel=ACCURACY)
    for name, begun in start.named_parameters():
        moved = found.get_parameter(name).double() - begun.double()
        expected = exact.get_parameter(name) - begun.double()
        assert (moved - expected).norm() < ACCURACY * expected.norm(), name


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_the_unrolled_gradient_is_float32s(small: Make, fit: Fit, precision: str) -> None:
    alphas, statistics = [], []
    for one in ("32-true", precision):
        torch.manual_seed(0)
        module = fit(small(second_order=True, arch={"eps": 1.0}), 1, precision=one)
        alphas.append([alpha.detach() for alpha in module.alphas])
        statistics += [next(m for m in module.modules() if isinstance(m, BatchNorm)).running_mean]
    assert unlike(*alphas) == 0
    assert unlike(*statistics) == 1  # the weight step after it was in half precision


@pytest.mark.parametrize("purpose", [Purpose.WEIGHTS, Purpose.ARCHITECTURE])
def test_a_loss_that_is_not_finite_is_bad_at_once_under_a_scaler(
    smooth: Make, fit: Fit, smooth_objective: Callable[..., Any], purpose: Purpose
) -> None:
    objective = smooth_objective(bad_keys=[derive_key(SEED, purpose, 2)])
    module = fit(smooth(objective=objective), 3, precision="16-mixed")
    with pytest.raises(NonFiniteLossError, match="at step 2 "):
        module.check_state(0)


def test_a_scale_that_has_collapsed_is_bad(smooth: Make, fit: Fit, at_end: Make) -> None:
    module = smooth(steps_per_epoch=3)
    rates, bad = [], []

    def look(_: SearchModule) -> None:
        rates.append(module.optimizer_pair[0].param_groups[0]["lr"])
        bad.append(int(module.bad_step))

    with infinite_gradient(module.weights[0]):
        fit(module, 19, [at_end(look)], precision="16-mixed")
    assert bad == [-1] * 17 + [17] * 2  # 2¹⁶ / 2¹⁷ < 1
    assert (module.global_step, len(set(rates))) == (19, 7)  # the schedule went on
    with pytest.raises(NonFiniteLossError, match="its gradient became NaN or infinite at step 17 "):
        module.check_state(0)


@pytest.mark.parametrize(("precision", "half"), HALVES)
@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_statistics_mixing_weights_and_losses_stay_wide(
    small: Make, fit: Fit, at_end: Make, precision: str, half: torch.dtype, mode: str
) -> None:
    module = small(masking=Masking(0.5, 4, mode))  # type: ignore[arg-type]
    seen: dict[str, set[torch.dtype]] = {"features": set(), "mixture": set(), "held out": set()}

    def look(_: nn.Module, given: Any, features: list[Tensor]) -> None:  # noqa: ANN401
        seen["mixture"] |= {mixture.ops.dtype for mixture in given[1].values()}
        seen["features" if module.training else "held out"] |= {f.dtype for f in features}

    module.supernet.register_forward_hook(look)
    held_out = Batch(torch.randn(3, 3, 16, 16), torch.arange(3), 5)
    losses: list[float] = []
    reading = at_end(lambda _: losses.append(module.held_out_loss([held_out])))
    fit(module, 2, [reading], precision=precision)
    wide = {torch.float32}
    assert seen == {"features": {half}, "mixture": wide, "held out": wide}
    assert {buffer.dtype for buffer in module.supernet.buffers()} <= {*wide, torch.int64}
    assert {value.dtype for value in module.values.values()} == wide
    assert {parameter.dtype for parameter in module.parameters()} == wide
    module.double()
    exact = Batch(held_out.image.double(), held_out.index, held_out.key)
    assert losses[-1] == pytest.approx(module.held_out_loss([exact]), rel=1e-5)
