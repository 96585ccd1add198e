import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from mae_nas.network import DerivedNetwork, NetworkSize
from mae_nas.network.complexity import Place
from mae_nas.network.latency import Timing
from mae_nas.network.latency_table import LatencyTable, describe_place, measure_table, read_table
from mae_nas.spaces import S0, S1, S4, SearchSpace
from mae_nas.spaces.budgets import cost_of
from mae_nas.spaces.derivation import random_genotype

PLACE = Place(NetworkSize(4, 3, "cifar"), channels=1, side=8, classes=2)
CPU = torch.device("cpu")
INSIDE = {True: "reduce, from inputs", False: "reduce, inside"}


def measured(space: SearchSpace) -> LatencyTable:
    return measure_table(space, PLACE, 2, CPU, seconds=0.001, checked=3)


def test_every_operation_has_a_latency_where_it_may_stand() -> None:
    table = measured(S1())
    convolutions = {"dil_conv_3x3", "dil_conv_5x5", "sep_conv_3x3"}
    assert set(table.added["normal"]) == {"skip_connect", "max_pool_3x3", *convolutions}
    assert set(table.added["reduce, from inputs"]) >= {"skip_connect", "avg_pool_3x3"}
    assert set(table.added["reduce, inside"]) == {"skip_connect", "dil_conv_3x3", "dil_conv_5x5"}
    assert all(ns >= 0 for added in table.added.values() for ns in added.values())
    assert table.base > 0


def test_predictions_are_those_of_its_costs() -> None:
    space = S4()
    table = measured(space)
    for row in table.checked:
        genotype = random_genotype(space, int(row["seed"]))
        assert 1e6 * row["predicted_ms"] == pytest.approx(
            cost_of(genotype, table.costs(space), space)
        )
        assert row["measured_ms"] > 0
    assert len(table.errors()) == 3
    assert "of 3 random cells" in table.in_words()


@pytest.mark.parametrize("slower", [1.0, 1.25])
def test_what_each_operation_takes_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, slower: float
) -> None:
    """By a clock of which every network's seconds are known: sums, of random cells more."""
    space, base = S0(), 5.0
    order = sorted({name for names in space.primitives("normal") for name in names})
    probed = {"normal": 1.0, "reduce, from inputs": 3.0, "reduce, inside": 10.0}

    def cost(position: str, name: str) -> float:
        if name == "skip_connect":
            return 7.0 if position == "reduce, from inputs" else 0.0
        return probed[position] * (1 + order.index(name))

    def seconds(network: DerivedNetwork) -> float:
        kinds = network.genotype.cells
        return base + sum(
            cost(kind if kind == "normal" else INSIDE[edge.source < 2], edge.primitive)
            for kind, cell in kinds.items()
            for edge in cell.edges
        )

    def taken(networks: Mapping[str, DerivedNetwork], *_: object) -> dict[str, Timing]:
        found = {}
        for name, network in networks.items():
            s = seconds(network) * (slower if ":" in name else 1)
            found[name] = Timing(1, 5, s, s, s, s)
        return found

    monkeypatch.setattr("mae_nas.network.latency_table.time_networks", taken)
    table = measure_table(space, PLACE, 2, CPU, seconds=0.001, checked=4)
    assert table.base == round(1e9 * base * slower)
    for position, added in table.added.items():
        for name, nanoseconds in added.items():
            wanted = 1e9 * cost(position, name) * slower
            assert nanoseconds == pytest.approx(wanted, abs=1), (position, name)
    assert max(table.errors()) < 1e-6


def test_a_table_is_read_back_for_the_same_place_alone() -> None:
    space = S4()
    table = measured(space)
    document: Any = json.loads(json.dumps(table.to_dict()))
    where = describe_place(PLACE, 2, CPU)
    assert read_table(document, where, space) == table
    with pytest.raises(ValueError, match="measured elsewhere"):
        read_table(document, describe_place(PLACE, 1, CPU), space)
    with pytest.raises(ValueError, match="lacks max_pool_3x3"):
        read_table(document, where, S0())
    spoilt = ({"base": "1"}, {"base": 10**30}, {"checked": []}, {"added": 3}, {"checked": [{}]})
    for damaged in spoilt:
        with pytest.raises(ValueError, match=r"damaged|lacks"):
            read_table({**document, **damaged}, where, space)
