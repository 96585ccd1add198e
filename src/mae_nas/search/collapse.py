"""Has the search collapsed into skip connections? Judged against what chance gives.

The paper counts skips in the normal cell (Table 3). A count means little by itself: noise α derive
8/7 ≈ 1.1 skips in S0 but 4 in S2, so ours always stands beside the distribution under noise.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mae_nas.randomness import Purpose, derive_key
from mae_nas.spaces import SearchSpace
from mae_nas.spaces.derivation import choose

Verdict = Literal["ok", "warning", "collapsed"]
DRAWS = 20_000
SIGNIFICANCE = 0.05
PERSISTENCE = 3
COLLAPSED_SHARE = 7 / 8


@lru_cache
def chance_of_skips(space: SearchSpace, kind: str) -> NDArray[np.float64]:
    """P(K skips), K = 0 … kept edges, where noise α are derived in this space by the same rule."""
    edges, candidates = space.shape(kind)
    generator = np.random.default_rng(derive_key(Purpose.CHANCE) % 2**63)
    alphas = 1e-3 * generator.standard_normal((DRAWS, edges, candidates))
    weights = np.exp(alphas)
    weights /= weights.sum(axis=2, keepdims=True)
    choice = choose(weights, space, kind)
    kept = choice.kept
    is_skip = np.array(space.flags(kind, "is_skip"))
    chosen_skip = is_skip[np.arange(edges), choice.primitive]
    counts = np.take_along_axis(chosen_skip, kept, axis=1).sum(axis=1)
    return np.bincount(counts, minlength=kept.shape[1] + 1) / DRAWS


def chance_at_least(space: SearchSpace, kind: str, skips: int) -> float:
    """P(chance gives `skips` or more)."""
    return float(chance_of_skips(space, kind)[skips:].sum())


def mean_skips(space: SearchSpace, kind: str) -> float:
    """The skips that chance gives on average."""
    p = chance_of_skips(space, kind)
    return float((np.arange(len(p)) * p).sum())


def judge(history: Sequence[int], space: SearchSpace) -> Verdict:
    """The verdict after the readings so far.

    Args:
        history: skips in the normal cell at each reading after α's warm-up, in order.
        space: decides what chance gives and how many edges a cell has.

    Returns:
        `warning` if the last three readings all have more skips than chance gives in 95 % of cells;
        `collapsed` if, besides, seven of eight edges are skips. One reading proves nothing: healthy
        searches show four skips at epoch 0.
    """
    recent = history[-PERSISTENCE:]
    if len(recent) < PERSISTENCE:
        return "ok"
    if any(chance_at_least(space, "normal", skips) >= SIGNIFICANCE for skips in recent):
        return "ok"
    edges = len(chance_of_skips(space, "normal")) - 1
    return "collapsed" if recent[-1] >= COLLAPSED_SHARE * edges else "warning"
