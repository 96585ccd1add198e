"""What a few seeds tell: intervals of a mean, and of the difference of two."""

import math
from collections.abc import Sequence
from statistics import fmean, variance


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean; infinite where one value tells of no spread."""
    n = len(values)
    if n < 2:
        return -math.inf, math.inf
    reach = _quantile(n - 1) * math.sqrt(variance(values) / n)
    return fmean(values) - reach, fmean(values) + reach


def difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Difference of the means, and Welch's 95 % interval of it."""
    apart = fmean(one) - fmean(other)
    if min(len(one), len(other)) < 2:
        return apart, -math.inf, math.inf
    parts = [(variance(values) / len(values), len(values) - 1) for values in (one, other)]
    whole = sum(share for share, _ in parts)
    if whole == 0:
        return apart, apart, apart
    freedom = whole**2 / sum(share**2 / free for share, free in parts)
    reach = _quantile(freedom) * math.sqrt(whole)
    return apart, apart - reach, apart + reach


def _quantile(freedom: float) -> float:
    """Of Student's distribution, with 2.5 % above it."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))
