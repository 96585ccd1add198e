"""The multiple-choice knapsack with several budgets: one option of each node, exactly.

Options of one node after the other are added to all partial solutions. A partial solution goes

- when it, and the least that the other nodes take, exceeds a limit;
- when another, equal in all costs but the last and no dearer in it, scores as much;
- when it cannot reach the best score known. How far it can get is bounded by prices (Lagrange
  multipliers): no solution within the limits scores more than its score, less its costs at any
  prices, plus the whole budget at those prices. The prices are those of a subgradient descent.

Partial solutions beyond a number, those of the lowest bounds, are set aside. If the best of their
bounds does not exceed the score that is found, that is the optimum; else the number grows.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Priced = Sequence[tuple[Floats, Integers]]
"""Of each node, its options' scores (O,) and costs (O, D)."""
_DESCENT = 300
"""Steps towards the best prices; any prices are right, better ones are faster."""
_FIRST_WIDTH, _GROWTH = 1 << 10, 8


def undominated(score: Floats, cost: Integers) -> Integers:
    """Which of the (S,) scores at (S, D) costs none beats that is as cheap, by costs.

    Only those are compared that differ in the last cost alone. Of equals the first stays.
    """
    order = np.lexsort((-score, cost[:, -1], *cost[:, :-1].T))
    others = cost[order, :-1]
    is_start = np.r_[True, (others[1:] != others[:-1]).any(1)]
    group = np.cumsum(is_start)
    _, rank = np.unique(score[order], return_inverse=True)
    height = group * (len(score) + 1) + rank + 1
    before = np.r_[0, np.maximum.accumulate(height)[:-1]]
    return order[is_start | (height > before)]


def least(priced: Priced) -> Integers:
    """The least of each cost (D,), each by itself."""
    return np.sum([cost.min(0) for _, cost in priced], axis=0)


def solve(priced: Priced, room: Integers, *, certain: bool) -> Integers | None:
    """The option of each node with which the score is highest and no cost exceeds `room`.

    Args:
        priced: the nodes.
        room: (D,), which each cost can meet by itself.
        certain: whether to go on until the answer is proved; else None may mean "not found yet".
    """
    left = room - least(priced)
    reduced = [(score, cost - cost.min(0)) for score, cost in priced]
    prices, found = _descend(reduced, left)
    floor = -np.inf if found is None else _total(reduced, found)
    width = _FIRST_WIDTH
    while True:
        other, set_aside = _extend(reduced, left, prices, floor, width)
        if other is not None and (score := _total(reduced, other)) > floor:
            found, floor = other, score
        if set_aside <= floor or (found is None and not certain):
            return found
        width *= _GROWTH


def _total(priced: Priced, picks: Integers) -> float:
    return float(sum(score[pick] for (score, _), pick in zip(priced, picks, strict=True)))


def _descend(priced: Priced, left: Integers) -> tuple[Floats, Integers | None]:
    """Prices (D,) of low bound, and the best options within the limits met on the way, if any."""
    longest = max(len(score) for score, _ in priced)
    scores = np.full((len(priced), longest), -np.inf)
    used = np.zeros((len(priced), longest, len(left)))
    for row, (score, cost) in enumerate(priced):
        scores[row, : len(score)], used[row, : len(score)] = score, cost / np.maximum(left, 1)
    spread = max(float(np.ptp(score)) for score, _ in priced) or 1.0
    prices = best_prices = np.zeros(len(left))
    lowest, highest, found = np.inf, -np.inf, None
    nodes = np.arange(len(priced))
    for step in range(_DESCENT):
        values = scores - used @ prices
        picks = values.argmax(1)
        taken = used[nodes, picks].sum(0)
        if (bound := values[nodes, picks].sum() + prices.sum()) < lowest:
            lowest, best_prices = bound, prices
        score = scores[nodes, picks].sum()
        cost = np.sum([c[p] for (_, c), p in zip(priced, picks, strict=True)], axis=0)
        if (cost <= left).all() and score > highest:
            highest, found = score, picks
        slope = taken - 1
        length = float(np.abs(slope).max(initial=0.0)) or 1.0
        prices = np.maximum(0, prices + spread / (1 + step) ** 0.7 * slope / length)
    return best_prices / np.maximum(left, 1), found


def _extend(
    priced: Priced, left: Integers, prices: Floats, floor: float, width: int
) -> tuple[Integers | None, float]:
    """Picks that are best where any beat `floor`; and the best bound of what was set aside."""
    budget = float(left @ prices)
    most = [float((score - cost @ prices).max()) for score, cost in priced]
    score, cost = np.zeros(1), np.zeros((1, len(left)), np.int64)
    picks, set_aside = np.zeros((1, 0), np.int64), -np.inf
    for node, (added, adds) in enumerate(priced):
        scores = (score[:, None] + added).ravel()
        costs = (cost[:, None] + adds).reshape(len(scores), len(left))
        bound = scores - costs @ prices + (budget + sum(most[node + 1 :]))
        # The bounds' errors of rounding are less than what a better score is better by.
        keep = np.flatnonzero((costs <= left).all(1) & (bound > floor))
        keep = keep[undominated(scores[keep], costs[keep])] if len(keep) else keep
        if len(keep) > width:
            order = np.argsort(-bound[keep], kind="stable")
            set_aside = max(set_aside, float(bound[keep[order[width]]]))
            keep = keep[order[:width]]
        score, cost = scores[keep], costs[keep]
        picks = np.column_stack([picks[keep // len(added)], keep % len(added)])
    return (picks[score.argmax()] if len(score) else None), set_aside
