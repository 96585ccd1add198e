from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mae_nas.search.collapse import chance_at_least, chance_of_skips, judge
from mae_nas.spaces import S0, S1, S2, S3, S4, SearchSpace

DRAWS = 20_000


def exact(space: SearchSpace, kind: str) -> NDArray[np.float64]:
    """Closed form: noise keeps a uniform pair of a node's edges, each with a uniform candidate."""
    total = np.ones(1)
    start = 0
    for edges in (2, 3, 4, 5):
        names = space.primitives(kind)[start : start + edges]
        eligible = [[n for n in row if n != "none"] for row in names]
        skip = [row.count("skip_connect") / len(row) for row in eligible]
        node = np.zeros(3)
        for one, other in combinations(skip, 2):
            node += np.convolve([1 - one, one], [1 - other, other]) / comb(edges, 2)
        total = np.convolve(total, node)
        start += edges
    return total


SPACES = [S0(), S1(), S2(), S3(), S4()]


@pytest.mark.parametrize("kind", ["normal", "reduce"])
@pytest.mark.parametrize("space", SPACES, ids=lambda s: type(s).__name__)
def test_chance_of_skips_is_the_closed_form(space: SearchSpace, kind: str) -> None:
    found, expected = chance_of_skips(space, kind), exact(space, kind)
    assert found.shape == (9,)
    assert found.sum() == pytest.approx(1)
    spread = 4.5 * np.sqrt(expected * (1 - expected) / DRAWS)
    assert (np.abs(found - expected) <= spread + 1e-12).all()


def test_chance_has_the_means_and_thresholds_of_the_method() -> None:
    def mean(space: SearchSpace) -> float:
        return float(chance_of_skips(space, "normal") @ np.arange(9))

    s0, s1, s2, *_ = SPACES
    assert mean(s0) == pytest.approx(8 / 7, abs=0.03)
    assert mean(s1) == pytest.approx(3.6, abs=0.05)
    assert mean(s2) == pytest.approx(4, abs=0.05)
    assert chance_at_least(s0, "normal", 4) == pytest.approx(0.018, abs=0.004)
    assert chance_at_least(s0, "normal", 3) > 0.05  # hence 4 warn in S0
    assert chance_at_least(s2, "normal", 6) > 0.05 > chance_at_least(s2, "normal", 7)
    assert chance_at_least(s0, "normal", 0) == pytest.approx(1)


def test_chance_is_the_same_in_every_process_and_draws_from_no_generator() -> None:
    np.random.seed(4)  # noqa: NPY002
    torch.manual_seed(4)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    first, second = chance_of_skips(S0(), "normal"), chance_of_skips(S0(), "normal")
    assert np.array_equal(first, second)
    assert np.random.get_state()[1].tolist() == before[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])
    counts = np.rint(first * DRAWS).astype(int).tolist()
    assert counts == GOLDEN  # the same on every machine


GOLDEN = [5859, 7769, 4467, 1548, 312, 44, 1, 0, 0]


@pytest.mark.parametrize(
    ("space", "history", "verdict"),
    [
        ("S0", [], "ok"),
        ("S0", [8, 8], "ok"),  # twice is no habit
        ("S0", [4, 4, 4], "warning"),
        ("S0", [3, 4, 4], "ok"),
        ("S0", [4, 3, 4], "ok"),
        ("S0", [4, 4, 3], "ok"),
        ("S0", [4, 4, 4, 3], "ok"),  # it has recovered
        ("S0", [0, 0, 5, 4, 6], "warning"),
        ("S0", [4, 5, 6], "warning"),
        ("S0", [4, 5, 7], "collapsed"),
        ("S0", [8, 8, 8], "collapsed"),
        ("S0", [8, 8, 6], "warning"),
        ("S0", [2, 8, 8], "ok"),
        ("S2", [6, 6, 6], "ok"),
        ("S2", [7, 7, 7], "collapsed"),
        ("S1", [6, 6, 6], "ok"),
        ("S4", [0, 0, 0], "ok"),
    ],
)
def test_verdict_is_judged_against_chance(space: str, history: list[int], verdict: str) -> None:
    known = {type(s).__name__: s for s in SPACES}
    assert judge(history, known[space]) == verdict
