"""A given cell alone is the supernet with the mixture that has chosen it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mae_nas.backbone import CELL_KINDS
from mae_nas.genotype import PUBLISHED, Genotype
from mae_nas.relaxations import Fixed, Mixture
from mae_nas.spaces import S0, S1, S2, SearchSpace
from mae_nas.spaces.derivation import derive
from mae_nas.supernet import CellMaker, FusedCell, ReferenceCell, Supernet, SupernetSize


def encoder(space: SearchSpace, make_cell: CellMaker) -> Supernet:
    plan = SupernetSize(width=4, depth=3).plan(space, 16)
    return Supernet(space, 2, 3, plan, make_cell).double()


def one_hot(genotype: Genotype, space: SearchSpace) -> dict[str, Mixture]:
    mixtures = {}
    for kind, cell in genotype.cells.items():
        ops = torch.zeros(space.shape(kind), dtype=torch.float64)
        for edge in cell.edges:
            place = space.edges.index((edge.source, edge.target))
            ops[place, list(space.primitives(kind)[place]).index(edge.primitive)] = 1
        mixtures[kind] = Mixture(ops)
    return mixtures


@pytest.mark.parametrize("make_cell", [ReferenceCell, FusedCell])
@pytest.mark.parametrize(
    ("space", "genotype"), [(S0(), "DARTS_V2"), (S1(), "random:3"), (S2(), "random:4")]
)
def test_equals_the_whole_supernet_with_a_one_hot_mixture(
    space: SearchSpace, genotype: str, make_cell: CellMaker
) -> None:
    fixed = Fixed(space, genotype).double()
    alone, whole = encoder(fixed.space, make_cell), encoder(space, ReferenceCell)
    found, _ = derive({k: s.numpy() for k, s in fixed.scores().items()}, space)
    chosen = one_hot(found, space)
    weights = whole.state_dict()
    for name in alone.state_dict():  # the edges' own names: what is alone is a part of the whole
        assert name in weights
    alone.load_state_dict({name: weights[name] for name in alone.state_dict()})
    assert len(alone.state_dict()) < len(weights) / 2
    image = torch.randn(3, 2, 16, 16, dtype=torch.float64)
    for ours, theirs in zip(alone(image, fixed.mixture()), whole(image, chosen), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_gives_the_genotype_back() -> None:
    fixed = Fixed(S0(), "DARTS_V2")
    scores = {kind: table.numpy() for kind, table in fixed.scores().items()}
    found, _ = derive(scores, S0())
    for kind in CELL_KINDS:
        assert set(found.cells[kind].edges) == set(PUBLISHED["DARTS_V2"].cells[kind].edges)


def test_random_cells_are_those_of_their_seed() -> None:
    def cell(seed: int) -> str:
        return str(Fixed(S0(), f"random:{seed}").space.primitives("normal"))

    assert cell(1) == cell(1)
    assert len({cell(seed) for seed in range(20)}) == 20


@pytest.mark.parametrize(
    ("space", "text", "words"),
    [
        (S0(), "random:x", "needs a whole number"),
        (S2(), "DARTS_V2", "is not in S2"),
        (S0(), "Genotype(normal=[('skip_connect', 0)], normal_concat=[2, 3, 4, 5])", "reduce"),
    ],
)
def test_says_why_a_genotype_does_not_fit(space: SearchSpace, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Fixed(space, text)


def test_says_how_many_edges_a_node_lacks(tmp_path: Path) -> None:
    genotype = PUBLISHED["DARTS_V2"]
    normal = replace(genotype.normal, edges=genotype.normal.edges[:-1])
    file = tmp_path / "genotype.json"
    file.write_text(json.dumps(replace(genotype, normal=normal).to_dict()))
    with pytest.raises(ValueError, match=r"normal cell: every node of S0 keeps 2 .* 1 at node 5"):
        Fixed(S0(), str(file))
