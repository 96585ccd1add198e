import json
from typing import Any

import pytest
import torch

from mae_nas.network import NetworkSize
from mae_nas.network.complexity import Place
from mae_nas.network.latency_table import LatencyTable, describe_place, measure_table, read_table
from mae_nas.spaces import S0, S1, S4, SearchSpace
from mae_nas.spaces.budgets import cost_of
from mae_nas.spaces.derivation import random_genotype

PLACE = Place(NetworkSize(4, 3, "cifar"), channels=1, side=8, classes=2)
CPU = torch.device("cpu")


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


def test_a_convolution_takes_longer_than_a_skip() -> None:
    place = Place(NetworkSize(16, 3, "cifar"), channels=3, side=32, classes=2)
    table = measure_table(S0(), place, 2, CPU, seconds=0.1, checked=1)
    for added in table.added.values():
        assert added["sep_conv_5x5"] > added["skip_connect"]


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
    for damaged in ({"base": "1"}, {"checked": []}, {"added": 3}, {"checked": [{}]}):
        with pytest.raises(ValueError, match=r"damaged|lacks"):
            read_table({**document, **damaged}, where, space)
