"""What every search space must do: adding one to the package adds its tests."""

import inspect
import pkgutil
from importlib import import_module

import pytest
import torch

import mae_nas.spaces
from mae_nas.genotype import CellGenotype, Edge, Genotype
from mae_nas.masking import VisibleMap
from mae_nas.relaxations import DARTS
from mae_nas.spaces import SearchSpace
from mae_nas.supernet import ReferenceCell, Supernet, SupernetSize

KINDS = ("normal", "reduce")


def spaces() -> list[type[SearchSpace]]:
    found: set[type[SearchSpace]] = set()
    for info in pkgutil.walk_packages(mae_nas.spaces.__path__, "mae_nas.spaces."):
        for _, member in inspect.getmembers(import_module(info.name), inspect.isclass):
            if issubclass(member, SearchSpace) and not member.__name__.startswith("_"):
                found |= set() if inspect.isabstract(member) else {member}
    return sorted(found, key=lambda c: c.__name__)


every_space = pytest.mark.parametrize(
    "space", [cls() for cls in spaces()], ids=lambda s: type(s).__name__
)


def test_the_package_has_spaces() -> None:
    assert {c.__name__ for c in spaces()} >= {"S0", "S1", "S2", "S3", "S4"}


@every_space
@pytest.mark.parametrize("kind", KINDS)
def test_candidates_are_distinct_known_and_one_row_per_edge(space: SearchSpace, kind: str) -> None:
    edges, candidates = space.shape(kind)
    assert edges == len(space.edges) == len(set(space.edges))
    assert all(0 <= source < target for source, target in space.edges)
    for names in space.primitives(kind):
        assert len(names) == len(set(names)) == candidates
        assert set(names) <= set(space.operations())
    flags = space.flags(kind, "is_zero")
    assert all(not all(row) for row in flags), (
        "an edge needs a candidate that derivation may choose"
    )


@every_space
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [8, 14])
@pytest.mark.parametrize("patch", [None, 1, 2])
def test_operations_keep_their_shapes_gradients_and_holes(
    space: SearchSpace, stride: int, side: int, patch: int | None
) -> None:
    names = {n for kind in KINDS for row in space.primitives(kind) for n in row}
    before = after = None
    if patch is not None:
        visible = VisibleMap(torch.rand(3, side // patch, side // patch) < 0.5, patch)
        before, after = visible.at(1), visible.at(stride)
    for name in sorted(names):
        operation = space.make(name, 6, stride)
        if operation.is_zero:
            continue
        x = torch.randn(3, 6, side, side)
        x = (x if before is None else x.where(before, 0.0)).requires_grad_()
        y = operation(x, before, after)
        assert y.shape == (3, 6, side // stride, side // stride), name
        if after is not None:
            assert not y.masked_fill(after, 0.0).any(), name
        if not operation.is_random:
            y.square().sum().backward()
            assert x.grad is not None
            assert x.grad.any(), name
        again = space.make(name, 6, stride)
        again.load_state_dict(operation.state_dict())


@every_space
def test_one_random_cell_of_the_space_is_accepted_and_a_foreign_one_is_not(
    space: SearchSpace,
) -> None:
    generator = torch.Generator().manual_seed(4)
    cells = {}
    for kind in KINDS:
        edges = []
        zero = space.flags(kind, "is_zero")
        for target in space.concat:
            for at, source, _ in space.incoming(target)[: space.kept_edges]:
                free = [
                    n for n, z in zip(space.primitives(kind)[at], zero[at], strict=True) if not z
                ]
                pick = int(torch.randint(len(free), (), generator=generator))
                edges.append(Edge(free[pick], source, target))
        cells[kind] = CellGenotype(tuple(edges), space.concat, space.inputs)
    space.check(Genotype(**cells))
    first, *others = cells["reduce"].edges
    foreign = CellGenotype((Edge("teleport", first.source, first.target), *others), space.concat)
    with pytest.raises(ValueError, match="reduce cell: teleport on edge 0→2"):
        space.check(Genotype(cells["normal"], foreign))


@every_space
@pytest.mark.parametrize("is_sparse", [False, True])
def test_supernet_of_the_space_runs_and_reaches_every_parameter(
    space: SearchSpace, is_sparse: bool
) -> None:
    plan = SupernetSize(4, 3).plan(space, 8)
    net, relaxation = Supernet(space, 2, 3, plan, ReferenceCell), DARTS(space)
    image = torch.randn(3, 2, 8, 8)
    visible = None
    if is_sparse:
        visible = VisibleMap(torch.rand(3, 2, 2) < 0.5, 4)
        image = image.where(visible.at(1), 0.0)
    features = net(image, relaxation.mixture(), visible)
    assert [f.shape[1] for f in features] == [info.channels for info in plan.features]
    loss = torch.stack([f.pow(3).mean() for f in features]).sum()
    loss.backward()
    for name, parameter in [*net.named_parameters(), *relaxation.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@every_space
def test_supernet_state_survives_a_round_trip(space: SearchSpace) -> None:
    plan = SupernetSize(2, 3).plan(space, 8)
    first, second = (Supernet(space, 1, 3, plan, ReferenceCell) for _ in range(2))
    mixtures = DARTS(space).mixture()
    image = torch.randn(2, 1, 8, 8)
    torch.manual_seed(0)
    expected = first(image, mixtures)
    torch.manual_seed(0)
    assert not torch.equal(second(image, mixtures)[2], expected[2])
    second.load_state_dict(first.state_dict())
    first.eval()
    second.eval()
    torch.manual_seed(0)
    expected = first(image, mixtures)
    torch.manual_seed(0)
    assert all(map(torch.equal, second(image, mixtures), expected))
