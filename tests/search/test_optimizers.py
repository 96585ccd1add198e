"""How optimizers are made of what a configuration names."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mae_nas.search.optimizers import make_fused

RULE: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


@pytest.fixture
def unwritten_is_nan() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (partial(torch.optim.SGD, **RULE), (True, None)),
        (torch.optim.Adam, (True, None)),
        (torch.optim.RMSprop, (None, True)),  # has no fused kernel
        (partial(torch.optim.SGD, **RULE, dampening=0.1), (None, True)),
        (partial(torch.optim.SGD, **RULE, fused=False), (False, None)),
        (partial(torch.optim.Adam, foreach=False), (None, False)),
        (partial(torch.optim.Adam, differentiable=True), (None, True)),
        (torch.optim.LBFGS, (None, None)),  # has neither
    ],
)
def test_a_kernel_where_there_is_one_and_the_users_choice_stands(
    make: Callable[..., torch.optim.Optimizer], expected: tuple[bool | None, bool | None]
) -> None:
    group = make_fused(make, [nn.Parameter(torch.ones(3))]).param_groups[0]
    assert (group.get("fused"), group.get("foreach")) == expected


def written_out(slopes: list[list[Tensor | None]], weights: list[Tensor]) -> list[Tensor]:
    """SGD as torch documents it, a number at a time; None: no gradient, no step."""
    velocity = [torch.zeros_like(w) for w in weights]
    for step in slopes:
        for i, slope in enumerate(step):
            if slope is not None:
                velocity[i] = 0.9 * velocity[i] + slope + 0.01 * weights[i]
                weights[i] = weights[i] - 0.1 * velocity[i]
    return weights


@pytest.mark.usefixtures("unwritten_is_nan")
@pytest.mark.parametrize("case", ["overflow", "late"])
def test_momentum_starts_at_zero_whatever_the_first_step_is(case: str) -> None:
    """A scaler skips the first step, or the first gradient of a weight comes with the second."""
    start = [torch.randn(4, dtype=torch.float64) for _ in range(2)]
    slopes: list[list[Tensor | None]] = [list(torch.randn(2, 4).double()) for _ in range(3)]
    slopes[0] = [None, None] if case == "overflow" else [slopes[0][0], None]
    weights = [nn.Parameter(w.clone()) for w in start]
    optimizer: Any = make_fused(partial(torch.optim.SGD, **RULE), weights)
    for step in slopes:
        optimizer.grad_scale = torch.ones(())
        optimizer.found_inf = torch.tensor(float(step[1] is None and case == "overflow"))
        for weight, slope in zip(weights, step, strict=True):
            infinite = torch.full_like(weight, torch.inf) if case == "overflow" else None
            weight.grad = infinite if slope is None else slope.clone()
        optimizer.step()
    for weight, expected in zip(weights, written_out(slopes, start), strict=True):
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)
