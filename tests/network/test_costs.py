from collections.abc import Callable, Mapping

import pytest

from mae_nas.network import NetworkSize
from mae_nas.network.complexity import Place, measure_complexity
from mae_nas.network.costs import COUNTED, cost_tables, place_complexity
from mae_nas.spaces import S0, S1, S4, SearchSpace
from mae_nas.spaces.budgets import cost_of
from mae_nas.spaces.derivation import random_genotype
from mae_nas.spaces.primitives import PRIMITIVES, ConvPair, Primitive


class Own(S0):
    """One operation is of its own, and five nodes of three edges each."""

    nodes = 5
    kept_edges = 3
    candidates = ("none", "skip_connect", "cross")

    def operations(self) -> Mapping[str, Callable[[int, int], Primitive]]:
        return {"none": PRIMITIVES["none"], "skip_connect": PRIMITIVES["skip_connect"]} | {
            "cross": ConvPair
        }


PLACES = (
    Place(NetworkSize(4, 7, "cifar"), channels=3, side=16, classes=10),
    Place(NetworkSize(6, 5, "small", auxiliary=False), channels=1, side=24, classes=3),
    Place(NetworkSize(8, 6, "imagenet"), channels=2, side=64, classes=5),
)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.size.stem)
@pytest.mark.parametrize(
    "space",
    [S0(), Own(), *(pytest.param(s, marks=pytest.mark.slow) for s in (S1(), S4()))],
    ids=lambda s: type(s).__name__,
)
def test_base_and_table_sum_to_the_network(space: SearchSpace, place: Place) -> None:
    tables = cost_tables(space, place)
    for seed in range(3):
        genotype = random_genotype(space, seed)
        whole = place_complexity(space, place, genotype)
        assert isinstance(space, Own) or whole == measure_complexity(genotype, place)
        for name in COUNTED:
            assert cost_of(genotype, tables[name], space) == getattr(whole, name)


def test_skips_are_those_of_the_normal_cell() -> None:
    space = S0()
    table = cost_tables(space, PLACES[0])["skips"]
    for seed in range(5):
        genotype = random_genotype(space, seed)
        skips = [edge.primitive == "skip_connect" for edge in genotype.normal.edges]
        assert cost_of(genotype, table, space) == sum(skips)
