import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mae_nas.backbone import CELL_KINDS
from mae_nas.genotype import PUBLISHED
from mae_nas.relaxations import DARTS
from mae_nas.spaces import S0, S1, S2, S3, S4, SearchSpace
from mae_nas.spaces.derivation import choose, derive

Found = list[tuple[str, int, int]]


def darts_rule(
    weights: list[list[float]], primitives: list[list[str]]
) -> tuple[Found, dict[tuple[int, int], float]]:
    """The rule of DARTS, Sec. 2.4, in loops: edges in order, and the strength of each kept one."""
    found: Found = []
    strengths = {}
    start = 0
    for node in range(4):
        count = node + 2
        best = []
        for edge in range(count):
            names, row = primitives[start + edge], weights[start + edge]
            top = None
            for k, name in enumerate(names):
                if name != "none" and (top is None or row[k] > row[top]):
                    top = k
            assert top is not None
            best.append((edge, top, row[top]))
        ranked: list[tuple[int, int, float]] = []
        for candidate in best:  # insertion behind all that are at least as strong
            place = sum(other[2] >= candidate[2] for other in ranked)
            ranked.insert(place, candidate)
        for edge, top, strength in ranked[:2]:
            found.append((primitives[start + edge][top], edge, node + 2))
            strengths[edge, node + 2] = strength
        start += count
    return found, strengths


def random_scores(space: SearchSpace, kind: str, seed: int, levels: int) -> NDArray[np.float64]:
    """Weights of one cell; few levels make ties."""
    generator = np.random.default_rng(seed)
    return generator.integers(1, levels + 1, space.shape(kind)) / (levels + 1)


@pytest.mark.parametrize("levels", [2, 5, 10**9])
@pytest.mark.parametrize("space", [S0(), S1(), S2(), S3(), S4()], ids=lambda s: type(s).__name__)
def test_derive_follows_the_rule_of_darts_also_in_ties(space: SearchSpace, levels: int) -> None:
    for seed in range(6):
        scores = {
            k: random_scores(space, k, 2 * seed + i, levels) for i, k in enumerate(CELL_KINDS)
        }
        genotype, totals = derive(scores, space)
        for kind, cell in genotype.cells.items():
            names = [list(edge) for edge in space.primitives(kind)]
            expected, strengths = darts_rule(scores[kind].tolist(), names)
            assert [(e.primitive, e.source, e.target) for e in cell.edges] == expected
            assert cell.concat == (2, 3, 4, 5)
            assert totals[kind] == pytest.approx(sum(strengths.values()), rel=1e-12)
        space.check(genotype)


def test_choose_judges_many_cells_as_one_by_one() -> None:
    space = S3()
    cells = np.stack([random_scores(space, "normal", seed, 4) for seed in range(6)])
    together = choose(cells, space, "normal")
    for number, cell in enumerate(cells):
        alone = choose(cell[None], space, "normal")
        for whole, part in zip(together, alone, strict=True):
            assert np.array_equal(whole[number], part[0])


def test_nodes_keep_as_many_edges_as_they_have() -> None:
    class Three(S0):
        kept_edges = 3

    scores = np.random.default_rng(0).random((1, 14, 8))
    genotype, _ = derive({"normal": scores[0], "reduce": scores[0]}, Three())
    targets = [edge.target for edge in genotype.normal.edges]
    assert [targets.count(node) for node in range(2, 6)] == [2, 3, 3, 3]
    assert choose(scores, Three(), "normal").kept.shape == (1, 11)


def test_none_is_never_chosen_but_weakens_its_edge() -> None:
    space = S0()
    torch.manual_seed(0)
    relaxation = DARTS(space)
    alpha = relaxation.alphas["normal"]

    def sources_of_last_node() -> list[int]:
        scores = {kind: table.double().numpy() for kind, table in relaxation.scores().items()}
        genotype, _ = derive(scores, space)
        assert all(edge.primitive != "none" for edge in genotype.normal.edges)
        return [edge.source for edge in genotype.normal.edges if edge.target == 5]

    first, second = sources_of_last_node()
    edge = space.edges.index((first, 5))
    with torch.no_grad():
        alpha[edge, space.primitives("normal")[edge].index("none")] = 3.0
    assert first not in sources_of_last_node()
    assert sources_of_last_node()[0] == second
    with torch.no_grad():  # the strongest candidate of all on each edge
        alpha[:, 0] = 9.0
    sources_of_last_node()


@pytest.mark.parametrize("name", ["DARTS_V1", "DARTS_V2"])
def test_derive_gives_a_published_cell_back(name: str) -> None:
    space = S0()
    expected = PUBLISHED[name]
    scores = {}
    for kind, cell in expected.cells.items():
        scores[kind] = np.full(space.shape(kind), 0.05)
        for rank, edge in enumerate(cell.edges):
            at = space.edges.index((edge.source, edge.target))
            column = space.primitives(kind)[at].index(edge.primitive)
            scores[kind][at, column] = 0.9 - 0.01 * rank
    genotype, totals = derive(scores, space)
    for kind, cell in expected.cells.items():
        assert genotype.cells[kind].edges == cell.edges
        assert totals[kind] == pytest.approx(sum(0.9 - 0.01 * rank for rank in range(8)))
