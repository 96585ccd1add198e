"""Networks made equally fast: the width at which one takes as long as another, measured here."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from mae_nas.genotype import Genotype
from mae_nas.network.complexity import Place
from mae_nas.network.derived import WIDEST
from mae_nas.network.latency import time_networks


def width_as_fast(
    genotype: Genotype,
    place: Place,
    image: torch.Tensor,
    reference: nn.Module | float,
    seconds: float,
) -> int:
    """The even width at which the genotype's network takes most nearly as long as `reference`.

    Every width that is tried takes turns with the reference, so that what else goes on meets both.

    Args:
        genotype: of the network.
        place: its depth, stem and images.
        image: (B, C, S, S), on the device that computes.
        reference: a network on that device, in evaluation mode; or seconds.
        seconds: to spend on each measurement, about.

    Raises:
        ValueError: even the narrowest network takes twice as long.
    """
    known: dict[int, float] = {}

    def ratio(width: int) -> float:
        if width not in known:
            size = replace(place.size, width=width, auxiliary=False)
            made = replace(place, size=size).network(genotype).to(image.device).eval()
            known[width] = _ratio(made, reference, image, seconds)
        return known[width]

    width = _crossing(lambda width: ratio(width) >= 1)
    nearest = min((w for w in (width - 2, width) if w >= 2), key=lambda w: abs(ratio(w) - 1))
    if nearest == 2 and ratio(2) > 2:
        raise ValueError(
            f"at width 2 the network takes {ratio(2):.1f} times as long already; lessen "
            "network.depth, or let the others be slower"
        )
    return nearest


def _crossing(is_slower: Callable[[int], bool]) -> int:
    """The least even width that is slower, as far as widths and times rise together."""
    low, high = 0, 2
    while high < WIDEST and not is_slower(high):
        low, high = high, 2 * high
    while high - low > 2:
        middle = (low + high) // 4 * 2
        low, high = (low, middle) if is_slower(middle) else (middle, high)
    return high


def _ratio(
    made: nn.Module, reference: nn.Module | float, image: torch.Tensor, seconds: float
) -> float:
    if isinstance(reference, nn.Module):
        timed = time_networks({"made": made, "reference": reference}, image, seconds)
        return timed["made"].median / timed["reference"].median
    return time_networks({"made": made}, image, seconds)["made"].median / reference
