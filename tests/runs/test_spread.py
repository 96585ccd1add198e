import math

import pytest

from mae_nas.runs.spread import difference, interval


def test_the_interval_of_a_mean_is_students() -> None:
    low, high = interval([1.0, 2.0, 6.0])  # mean 3, sd √7, t of 2 is 4.302653
    reach = 4.302653 * math.sqrt(7 / 3)
    assert (low, high) == pytest.approx((3 - reach, 3 + reach), rel=1e-6)
    assert interval([2.0]) == (-math.inf, math.inf)
    assert interval([2.0, 2.0]) == (2.0, 2.0)


def test_a_difference_is_welchs() -> None:
    """By the formula, with t of its 2.94 degrees of freedom interpolated from tables."""
    one, other = [1.0, 2.0, 6.0], [10.0, 11.0, 12.0]
    apart, low, high = difference(one, other)
    whole = 7 / 3 + 1 / 3
    freedom = whole**2 / ((7 / 3) ** 2 / 2 + (1 / 3) ** 2 / 2)
    assert freedom == pytest.approx(2.56)
    assert apart == pytest.approx(-8)
    assert (low + high) / 2 == pytest.approx(-8)
    reach = (high - low) / 2 / math.sqrt(whole)
    assert 3.182446 < reach < 4.302653  # between t of 3 and of 2
    assert difference([1.0], [2.0, 3.0])[1:] == (-math.inf, math.inf)
    assert difference([1.0, 1.0], [3.0, 3.0]) == (-2.0, -2.0, -2.0)


def test_equal_arms_have_the_freedom_of_both() -> None:
    _, low, high = difference([1.0, 2.0, 3.0], [5.0, 6.0, 7.0])  # t of 4 is 2.776445
    assert (high - low) / 2 == pytest.approx(2.776445 * math.sqrt(2 / 3), rel=1e-6)
