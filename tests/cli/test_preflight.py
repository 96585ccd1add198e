from types import SimpleNamespace
from typing import Any

import pytest

from mae_nas.cli import preflight
from mae_nas.runs.measure import StepCost


def cost(images: int, seconds: float) -> StepCost:
    return StepCost(images, seconds, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("of_four", "seconds"),
    [
        (1.5, 2 + 56 / 8),  # half of it for any number, an eighth of a second an image
        (1.0, 2 + 56 / 4),  # by the image
        (0.5, 2 + 56 / 4),  # no clock is exact: not more than by the image
        (2.5, 2 + 56 / 16),  # nor less than a quarter of that
    ],
)
def test_a_slow_step_is_estimated_by_a_line_through_two(
    of_four: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts: list[int] = []
    run: Any = SimpleNamespace(
        settings=SimpleNamespace(parts=1, accumulate=1),
        data=SimpleNamespace(cut=lambda images, _accumulate: cuts.append(images)),
    )
    monkeypatch.setattr(preflight, "_try", lambda *_: cost(4, of_four))
    assert preflight._of_more(run, cost(8, 2.0), 64) == pytest.approx(seconds)
    assert cuts == [4]
    assert preflight._of_more(run, cost(8, 0.1), 64) == pytest.approx(0.8)  # it will be tried
    assert cuts == [4]
