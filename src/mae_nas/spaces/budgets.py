"""The best cells under limits, exactly (method, Sec. 7), and what a looser limit would buy.

A genotype's score is the sum of its chosen mixing weights, its cost the sum over its edges of what
the chosen operation costs there: both add over the nodes of both cells. Every node has a list of
options: which edges it keeps, which operation each gets. Those that another beats at the same cost
are left out, most of them, since what an operation costs depends on its stride alone. One option of
each node is then chosen as `mae_nas.spaces.knapsack` says. That several limits can be met together
is decided the same way: the least of one cost under those before it.

A Pareto front is merged node by node: each option added to each point, the undominated kept.

Scores are rounded to 2^-40 of the largest, and costs are whole numbers: sums are then exact in any
order, and a tie is a tie.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from mae_nas.genotype import CellGenotype, Edge, Genotype
from mae_nas.spaces.base import SearchSpace
from mae_nas.spaces.knapsack import Floats, Integers, Priced, least, solve, undominated


class CostTable(NamedTuple):
    """What a network costs: `base` whatever the cells, and per kind (E, K) what each choice adds.

    Whole numbers: latencies are in nanoseconds.
    """

    base: int
    tables: Mapping[str, Integers]


def cost_of(genotype: Genotype, table: CostTable, space: SearchSpace) -> int:
    """What the table says of a genotype of the space."""
    total = table.base
    for kind, cell in genotype.cells.items():
        names = space.primitives(kind)
        for edge in cell.edges:
            e = space.edges.index((edge.source, edge.target))
            total += int(table.tables[kind][e, names[e].index(edge.primitive)])
    return total


class OverBudgetError(ValueError):
    """No cells meet the limits: the least of the cost `name` is `least`, under those of `given`."""

    def __init__(self, name: str, least: int, given: Sequence[str]) -> None:
        super().__init__(f"{name}: at least {least}")
        self.name, self.least, self.given = name, least, given


class _Options(NamedTuple):
    """What O options of a node keep, score and cost, in the order in which ties are won.

    Shapes:
        edges, primitives: (O, kept); score: (O,); cost: (O, D).
    """

    kind: str
    edges: Integers
    primitives: Integers
    score: Floats
    cost: Integers

    def at(self, index: Integers) -> "_Options":
        """Some of them."""
        chosen = self.edges[index], self.primitives[index], self.score[index], self.cost[index]
        return _Options(self.kind, *chosen)


@dataclass(frozen=True)
class Solution:
    """Cells, their score, and each of their costs, base included."""

    genotype: Genotype
    score: float
    costs: Mapping[str, int]


class Front(NamedTuple):
    """All F trade-offs of score and one cost, cheapest first: each is the best at its cost.

    Shapes:
        score: (F,), rising; costs: name -> (F,), every cost of the same cells, base included.
    """

    score: Floats
    costs: Mapping[str, Integers]


class Budgets:
    """The choices of a space, scored and priced.

    Args:
        scores: (E, K) mixing weights per kind of cell.
        costs: by name, in the space's edges and candidates.
        space: that they belong to.
    """

    def __init__(
        self, scores: Mapping[str, Floats], costs: Mapping[str, CostTable], space: SearchSpace
    ) -> None:
        self.space, self.costs, self.scores = space, costs, scores
        rounded = _rounded(scores)
        self.nodes = [
            _options(kind, target, scores[kind], rounded[kind], costs, space)
            for kind in scores
            for target in space.concat
        ]
        self.base = np.array([table.base for table in costs.values()], np.int64)

    def best(self, limits: Mapping[str, int]) -> Solution:
        """The cells of the highest score at costs of at most `limits`.

        Raises:
            OverBudgetError: there are none.
        """
        free = self._solution(self.nodes, np.array([n.score.argmax() for n in self.nodes]))
        if all(free.costs[name] <= most for name, most in limits.items()):
            return free
        names = [name for name in self.costs if name in limits]
        columns = [list(self.costs).index(name) for name in names]
        room = np.array([limits[name] for name in names], np.int64) - self.base[columns]
        nodes = [node.at(undominated(node.score, node.cost[:, columns])) for node in self.nodes]
        priced = [(node.score, node.cost[:, columns]) for node in nodes]
        for name, left, taken in zip(names, room, least(priced), strict=True):
            if taken > left:
                raise OverBudgetError(name, int(taken + limits[name] - left), ())
        picks = solve(priced, room, certain=False)
        if picks is None:  # rarely: the limits are tight together, or contradict each other
            self._check_together(priced, room, names, limits)
            picks = solve(priced, room, certain=True)
        assert picks is not None
        return self._solution(nodes, picks)

    def front(self, name: str) -> Front:
        """Every best score that a limit on the cost `name` alone can buy."""
        column = list(self.costs).index(name)
        score, costs = np.zeros(1), np.zeros((1, len(self.costs)), np.int64)
        for node in self.nodes:
            few = node.at(undominated(node.score, node.cost[:, [column]]))
            score = (score[:, None] + few.score).ravel()
            costs = (costs[:, None] + few.cost).reshape(len(score), len(self.costs))
            keep = undominated(score, costs[:, [column]])
            score, costs = score[keep], costs[keep]
        columns = (costs + self.base).T
        return Front(score, dict(zip(self.costs, columns, strict=True)))

    def _check_together(
        self,
        priced: Priced,
        room: Integers,
        names: Sequence[str],
        limits: Mapping[str, int],
    ) -> None:
        """OverBudgetError unless the limits can be met together; each can be alone."""
        for number in range(1, len(names)):
            cheapest = [(-cost[:, number].astype(float), cost[:, :number]) for _, cost in priced]
            picks = solve(cheapest, room[:number], certain=True)
            assert picks is not None  # the limits before this one can be met
            pairs = zip(priced, picks, strict=True)
            taken = sum(int(cost[pick, number]) for (_, cost), pick in pairs)
            if taken > room[number]:
                name = names[number]
                total = taken + limits[name] - int(room[number])
                raise OverBudgetError(name, total, names[:number])

    def _solution(self, nodes: Sequence[_Options], picks: Integers) -> Solution:
        edges: dict[str, list[Edge]] = {kind: [] for kind in self.scores}
        total = self.base.copy()
        score = 0.0
        for node, pick in zip(nodes, picks, strict=True):
            weights, names = self.scores[node.kind], self.space.primitives(node.kind)
            pairs = zip(node.edges[pick], node.primitives[pick], strict=True)
            kept = [(int(e), int(k)) for e, k in pairs]
            for e, k in sorted(kept, key=lambda pair: (-weights[pair], pair[0])):
                source, target = self.space.edges[e]
                edges[node.kind].append(Edge(names[e][k], source, target))
            total += node.cost[pick]
            score += float(node.score[pick])
        cells = {
            kind: CellGenotype(tuple(found), self.space.concat, self.space.inputs)
            for kind, found in edges.items()
        }
        costs = dict(zip(self.costs, total.tolist(), strict=True))
        return Solution(Genotype(**cells), score, costs)


def _rounded(scores: Mapping[str, Floats]) -> dict[str, Floats]:
    largest = max(float(np.abs(table).max()) for table in scores.values())
    quantum = 2.0 ** (np.frexp(largest)[1] - 41)
    return {kind: np.round(table / quantum) * quantum for kind, table in scores.items()}


def _options(
    kind: str,
    target: int,
    exact: Floats,
    rounded: Floats,
    costs: Mapping[str, CostTable],
    space: SearchSpace,
) -> _Options:
    """All options of a node, DARTS's own choice first: strongest edges and operations first.

    Ties go to the lower index, among edges as among operations.
    """
    zero = np.array(space.flags(kind, "is_zero"))
    eligible = np.where(zero, -np.inf, exact)
    edges = np.array([edge for edge, _, _ in space.incoming(target)])
    edges = edges[np.argsort(-eligible[edges].max(1), kind="stable")]
    ranked = np.argsort(-eligible[edges], axis=1, kind="stable")
    kept, chosen = _ranks(len(edges), min(space.kept_edges, len(edges)), exact.shape[1])
    primitives = ranked[kept, chosen]
    kept = edges[kept]
    possible = ~zero[kept, primitives].any(1)
    if not possible.any():
        raise ValueError(f"{kind} cell: node {target} has too few edges with an operation")
    kept, primitives = kept[possible], primitives[possible]
    table = np.array([cost.tables[kind] for cost in costs.values()], np.int64)
    cost = table.reshape(len(costs), *exact.shape)[:, kept, primitives].sum(2).T
    return _Options(kind, kept, primitives, rounded[kept, primitives].sum(1), cost)


@lru_cache
def _ranks(edges: int, kept: int, candidates: int) -> tuple[Integers, Integers]:
    """Ranks of the kept edges and of each one's operation, in all options, the strongest first."""
    sets = np.array(list(combinations(range(edges), kept)))
    operations = np.array(list(product(range(candidates), repeat=kept)))
    return np.repeat(sets, len(operations), 0), np.tile(operations, (len(sets), 1))
