"""Limited derivation, against all cells of a space."""

from collections.abc import Mapping, Sequence
from itertools import combinations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from mae_nas.backbone import CELL_KINDS
from mae_nas.spaces import S0, S1, S2, S3, S4, SearchSpace
from mae_nas.spaces.budgets import Budgets, CostTable, OverBudgetError, cost_of
from mae_nas.spaces.derivation import derive

NAMES = ("macs", "params", "latency", "skips")
SETS = [names for number in range(1, 5) for names in combinations(NAMES, number)]
Table = NDArray[np.float64]


class Two(SearchSpace):
    """Two nodes, and other candidates on every other edge."""

    nodes = 2

    def primitives(self, kind: str) -> Sequence[Sequence[str]]:
        other = "sep_conv_5x5" if kind == "normal" else "none"
        names = ["none", "skip_connect", "sep_conv_3x3", "max_pool_3x3"]
        return [names if edge % 2 else [other, *names[1:]] for edge in range(5)]


def random_problem(
    space: SearchSpace, seed: int, levels: int
) -> tuple[dict[str, Table], dict[str, CostTable]]:
    """Weights, some of them tied, and costs of which one rises with the other, as they do."""
    generator = np.random.default_rng(seed)
    scores = {
        kind: generator.integers(1, levels, space.shape(kind)) / levels for kind in CELL_KINDS
    }
    costs = {}
    by_name = generator.integers(0, 9, (4, 20))
    for row, name in enumerate(NAMES):
        tables = {}
        for kind in CELL_KINDS:
            order = sorted({n for names in space.primitives(kind) for n in names})
            index = [[order.index(n) for n in names] for names in space.primitives(kind)]
            tables[kind] = (by_name[0] + by_name[row])[index]
            if row == 2:  # one that is different on every edge
                tables[kind] = tables[kind] + generator.integers(0, 3, space.shape(kind))
        costs[name] = CostTable(int(generator.integers(0, 50)), tables)
    return scores, costs


def all_cells(
    scores: Mapping[str, Table], costs: Mapping[str, CostTable], space: SearchSpace
) -> tuple[Table, dict[str, NDArray[np.int64]]]:
    """Score and costs of every pair of cells, in loops over edges and operations."""
    score, totals = np.zeros(1), {name: np.array([t.base]) for name, t in costs.items()}
    for kind in CELL_KINDS:
        zero = space.flags(kind, "is_zero")
        for target in space.concat:
            edges = [edge for edge, _, _ in space.incoming(target)]
            rows = []
            for kept in combinations(edges, space.kept_edges):
                usable = [[k for k, z in enumerate(zero[e]) if not z] for e in kept]
                rows += [list(zip(kept, ks, strict=True)) for ks in product(*usable)]
            added = np.array([sum(scores[kind][pair] for pair in row) for row in rows])
            score = (score[:, None] + added).ravel()
            for name, table in costs.items():
                more = np.array([sum(table.tables[kind][pair] for pair in row) for row in rows])
                totals[name] = (totals[name][:, None] + more).ravel()
    return score, totals


@pytest.mark.parametrize(
    ("levels", "width"),
    [
        (4, 1 << 10),
        pytest.param(10**9, 1 << 10, marks=pytest.mark.slow),
        pytest.param(4, 1, marks=pytest.mark.slow),
        (10**9, 1),
    ],
)
def test_limited_derivation_is_the_best_of_all_cells(
    levels: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where partial solutions are set aside at first, until the answer is proved."""
    monkeypatch.setattr("mae_nas.spaces.knapsack._FIRST_WIDTH", width)
    monkeypatch.setattr("mae_nas.spaces.knapsack._GROWTH", 2)
    monkeypatch.setattr("mae_nas.spaces.knapsack._DESCENT", 300 if width > 1 else 2)
    space, refused = Two(), 0
    for seed in range(100):
        scores, costs = random_problem(space, seed, levels)
        score, totals = all_cells(scores, costs, space)
        budgets = Budgets(scores, costs, space)
        generator = np.random.default_rng(seed)
        for limited in (SETS[(seed + 5 * i) % len(SETS)] for i in range(3)):
            limits = {
                n: int(totals[n].min() + generator.random() ** 2 * np.ptp(totals[n]))
                for n in limited
            }
            fits = np.all([totals[n] <= most for n, most in limits.items()], axis=0)
            if not fits.any():
                with pytest.raises(OverBudgetError) as caught:
                    budgets.best(limits)
                error, refused = caught.value, refused + 1
                under = [totals[n] <= limits[n] for n in error.given]
                assert error.least == totals[error.name][np.all(under, axis=0)].min()
                assert error.least > limits[error.name]
                continue
            found = budgets.best(limits)
            assert found.score == pytest.approx(score[fits].max(), abs=1e-11)
            assert all(found.costs[n] <= most for n, most in limits.items())
            assert found.costs == {n: cost_of(found.genotype, costs[n], space) for n in NAMES}
            space.check(found.genotype)
    assert 10 < refused < 250


@pytest.mark.parametrize("levels", [4, 10**9])
def test_fronts_are_those_of_all_cells(levels: int) -> None:
    space = Two()
    for seed in range(10):
        scores, costs = random_problem(space, seed, levels)
        score, totals = all_cells(scores, costs, space)
        budgets = Budgets(scores, costs, space)
        for name in NAMES:
            front = budgets.front(name)
            steps = np.unique(totals[name])
            best = np.maximum.accumulate([score[totals[name] == c].max() for c in steps])
            is_better = np.r_[True, np.diff(best) > 1e-11]
            assert front.costs[name].tolist() == steps[is_better].tolist()
            assert front.score == pytest.approx(best[is_better], abs=1e-11)
            for row, value in enumerate(front.score):  # all costs are of the same cells
                same = np.abs(score - value) < 1e-11
                assert np.all([totals[n] == front.costs[n][row] for n in NAMES] + [same], 0).any()


def test_one_impossible_limit_names_the_least() -> None:
    space = Two()
    scores, costs = random_problem(space, 0, 9)
    least = all_cells(scores, costs, space)[1]["params"].min()
    with pytest.raises(OverBudgetError) as caught:
        Budgets(scores, costs, space).best({"macs": 10**6, "params": int(least) - 1})
    assert (caught.value.name, caught.value.least, caught.value.given) == ("params", least, ())


@pytest.mark.parametrize("levels", [3, 10**9])
def test_without_a_limit_it_is_the_rule_of_darts(levels: int) -> None:
    space = S0()
    for seed in range(500):
        scores, costs = random_problem(space, seed, levels)
        expected, totals = derive(scores, space)
        found = Budgets(scores, costs, space).best({})
        assert found.genotype == expected
        assert found.score == pytest.approx(sum(totals.values()), abs=1e-11)
        # Differences that sums are rounded to nothing of.
        scores = {kind: 0.5 + 1e-14 * table for kind, table in scores.items()}
        assert Budgets(scores, costs, space).best({}).genotype == derive(scores, space)[0]


@pytest.mark.parametrize("space", [S0(), S1(), S2(), S3(), S4()], ids=lambda s: type(s).__name__)
def test_every_space_has_cells_within_a_limit(space: SearchSpace) -> None:
    scores, costs = random_problem(space, 3, 10**9)
    budgets = Budgets(scores, costs, space)
    free = derive(scores, space)[0]
    for name in NAMES:
        front = budgets.front(name)
        assert budgets.best({name: int(front.costs[name][-1])}).genotype == free
        for place in range(0, len(front.score), max(1, len(front.score) // 5)):
            found = budgets.best({name: int(front.costs[name][place])})
            space.check(found.genotype)
            assert found.score == front.score[place]
            assert found.costs[name] == front.costs[name][place]


def test_nodes_keep_as_many_edges_as_they_have() -> None:
    class Three(S2):
        kept_edges = 3

    space = Three()
    scores, costs = random_problem(space, 1, 9)
    assert Budgets(scores, costs, space).best({}).genotype == derive(scores, space)[0]
