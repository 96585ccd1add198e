from collections.abc import Sequence
from itertools import product

import pytest

from mae_nas.genotype import PUBLISHED, CellGenotype, Edge, Genotype
from mae_nas.spaces import S0, S1, S2, S3, S4, SearchSpace

SPACES: dict[str, SearchSpace] = {"S0": S0(), "S1": S1(), "S2": S2(), "S3": S3(), "S4": S4()}

# RobustDARTS' table of S1, by edge: candidates of the normal | of the reduction cell.
S1_TABLE = """
0>2 skip dil3 | max avg
1>2 skip dil5 | max dil3
0>3 skip dil5 | max avg
1>3 skip sep3 | max avg
2>3 skip dil3 | skip dil5
0>4 max skip  | max avg
1>4 skip sep3 | max sep3
2>4 skip sep3 | skip dil3
3>4 skip dil3 | skip dil5
0>5 skip sep3 | max avg
1>5 max skip  | max avg
2>5 skip dil3 | skip dil5
3>5 dil3 dil5 | skip dil5
4>5 dil3 dil5 | skip dil5
"""
SHORT = {
    "skip": "skip_connect",
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "sep3": "sep_conv_3x3",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
}

HOMES = {
    "DARTS_V1": "S0",
    "DARTS_V2": "S0",
    "PC_DARTS_cifar": "S0",
    "PDARTS": "S0",
    "FairDARTS_a": "S0",
    "FairDARTS_b": "S0",
    "GDAS_V1": "S0",
    "SNAS_mild": "S0",
    "RLNAS_cifar10": "S0",
    "DARTSminus_cifar10_s0_0": "S0",
    "DARTSminus_cifar10_s0_1": "S0",
    "UNNAS_IMAGENET_CLS": "S0",
    "UNNAS_IMAGENET_COL": "S0",
    "NASNet": "",
    "AmoebaNet": "",
    "ENASNet": "",  # five nodes
    "DARTSminus_cifar10_s1_0": "S0 S1",
    "RobustDARTS_S1_cifar10_dp0.0_wd0.0003_t1": "S0 S1",
    "DARTSminus_cifar10_s2_0": "S0 S2 S3",
    "DARTSminus_cifar10_s4_0": "S4",
}


def test_edges_join_each_node_to_all_before_it() -> None:
    for space in SPACES.values():
        expected = [(j, i) for i in range(2, 6) for j in range(i)]
        assert list(space.edges) == expected
        assert space.concat == (2, 3, 4, 5)
        for target in space.concat:
            incoming = [(e, j, j < 2) for e, (j, i) in enumerate(expected) if i == target]
            assert space.incoming(target) == incoming


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "S0",
            "none max_pool_3x3 avg_pool_3x3 skip_connect sep_conv_3x3 sep_conv_5x5 dil_conv_3x3 "
            "dil_conv_5x5",
        ),
        ("S2", "skip_connect sep_conv_3x3"),
        ("S3", "none skip_connect sep_conv_3x3"),
        ("S4", "noise sep_conv_3x3"),
    ],
)
def test_candidates_are_the_published_ones_in_order(name: str, expected: str) -> None:
    for kind in ("normal", "reduce"):
        rows = SPACES[name].primitives(kind)
        assert [list(row) for row in rows] == [expected.split()] * 14
        assert SPACES[name].shape(kind) == (14, len(expected.split()))


def test_candidates_of_s1_are_the_published_ones() -> None:
    for line, edge in zip(S1_TABLE.strip().splitlines(), S1().edges, strict=True):
        where, candidates = line.split(maxsplit=1)
        assert where == "{}>{}".format(*edge)
        at = S1().edges.index(edge)
        for kind, half in zip(("normal", "reduce"), candidates.split("|"), strict=True):
            assert list(S1().primitives(kind)[at]) == [SHORT[name] for name in half.split()]


def accepts(space: SearchSpace, genotype: Genotype) -> bool:
    try:
        space.check(genotype)
    except ValueError:
        return False
    return True


def test_every_published_genotype_is_accepted_exactly_where_it_belongs() -> None:
    assert set(HOMES) == set(PUBLISHED)
    assert len(HOMES) == 20
    for name, genotype in PUBLISHED.items():
        accepted = [s for s, space in SPACES.items() if accepts(space, genotype)]
        assert accepted == HOMES[name].split(), name


def cell(*edges: tuple[str, int, int], concat: Sequence[int] = (2,), inputs: int = 2) -> Genotype:
    one = CellGenotype(tuple(Edge(*edge) for edge in edges), tuple(concat), inputs)
    return Genotype(one, one)


def test_check_refuses_other_graphs_and_operations_by_name() -> None:
    good = cell(("skip_connect", 0, 2), ("sep_conv_3x3", 1, 2))
    assert [s for s, space in SPACES.items() if accepts(space, good)] == ["S0", "S2", "S3"]
    with pytest.raises(ValueError, match=r"normal cell: none on edge 0→2 is not in S0"):
        S0().check(cell(("none", 0, 2), ("skip_connect", 1, 2)))
    with pytest.raises(ValueError, match=r"sep_conv_7x7 on edge 1→2 .*\(.*sep_conv_5x5.*\)"):
        S0().check(cell(("sep_conv_7x7", 1, 2)))
    with pytest.raises(ValueError, match="no such edge"):
        S0().check(cell(("skip_connect", 0, 6), concat=(6,)))
    with pytest.raises(ValueError, match="nodes are not those of S0"):
        S0().check(cell(("skip_connect", 0, 2), inputs=1))
    pooled = cell(("max_pool_3x3", 1, 2))
    assert accepts(S1(), Genotype(good_in_s1().normal, pooled.reduce))
    with pytest.raises(ValueError, match=r"normal cell: max_pool_3x3 on edge 1→2 is not in S1"):
        S1().check(pooled)


def good_in_s1() -> Genotype:
    return cell(("dil_conv_3x3", 0, 2), ("dil_conv_5x5", 1, 2))


def test_flags_follow_the_candidates() -> None:
    for space, kind in product(SPACES.values(), ("normal", "reduce")):
        for flag, name in (
            ("is_zero", "none"),
            ("is_skip", "skip_connect"),
            ("is_random", "noise"),
        ):
            expected = [[n == name for n in row] for row in space.primitives(kind)]
            assert space.flags(kind, flag) == expected


class Ragged(SearchSpace):
    """A space whose last edge has a candidate too many."""

    def primitives(self, kind: str) -> Sequence[Sequence[str]]:
        short = [("skip_connect",)] * 13
        return short if kind == "reduce" else [*short, ("skip_connect", "none")]


def test_an_ill_formed_space_says_what_is_wrong() -> None:
    lines = list(Ragged().problems())
    assert len(lines) == 2
    for kind, line in zip(("normal", "reduce"), lines, strict=True):
        assert line.startswith(f"Ragged.primitives({kind!r}): needs 14 edges with equally many")
    (line,) = Misspelt().problems()
    assert line.startswith("Misspelt: no operation sep_conv_9x9; known: none, max_pool_3x3, ")
    assert [list(space.problems()) for space in (S0(), S1(), S2(), S3(), S4())] == [[]] * 5


class Misspelt(S2):
    candidates = ("skip_connect", "sep_conv_9x9")
