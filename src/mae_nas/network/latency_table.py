"""How long each choice of a space makes a network take, measured in place on the device at hand.

An operation by itself is timed wrongly: caches are warm and the device waits for nothing. Whole
networks are timed instead, in turns, and told apart: one whose every edge is a skip connection, and
for each operation one that has it on all edges of the normal cells, one on those of the reduction
cells' edges that come from inputs (stride 2), and one on those that do not. What an operation costs
is the difference, divided by how many edges have it, and never less than nothing. A skip at stride
1 is the zero of the scale; at stride 2 it is told from its edges' number, which two all-skip
networks differ in. Different operations beside each other cost more than each beside skips: sums
are scaled by one factor, from a few random cells. Further random cells, which neither the table nor
the factor saw, say how well it predicts.

Times are the least over rounds: on a device that others use too, medians of networks that differ
little tell more about the others.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median

import numpy as np
import torch

from mae_nas.genotype import CellGenotype, Edge, Genotype
from mae_nas.keys import find
from mae_nas.network.complexity import Place
from mae_nas.network.latency import describe_device, time_networks
from mae_nas.spaces import SearchSpace
from mae_nas.spaces.budgets import CostTable, cost_of
from mae_nas.spaces.derivation import random_genotype
from mae_nas.spaces.primitives import PRIMITIVES

FORMAT = "mae_nas.latency/1"
POSITIONS = ("normal", "reduce, from inputs", "reduce, inside")
_NORMAL, _FROM_INPUTS, _INSIDE = POSITIONS
_SKIP = "skip_connect"
_NS, _MOST_NS = 10**9, 10**15
_MIXED, _SCALED_BY = 500_000_000, 6  # seeds that nobody asks for, cells


@dataclass(frozen=True)
class LatencyTable:
    """What was measured.

    Args:
        where: network, images, batch and device, in JSON's types.
        base: nanoseconds of the network without what its operations add.
        added: by position and operation, nanoseconds that it adds on one edge of all those cells.
        checked: of random cells: `seed`, and what was predicted and measured, in ms.
        seconds: spent on each network, about.
    """

    where: Mapping[str, object]
    base: int
    added: Mapping[str, Mapping[str, int]]
    checked: tuple[Mapping[str, float], ...]
    seconds: float

    def costs(self, space: SearchSpace) -> CostTable:
        """In the space's edges and candidates."""
        tables = {kind: np.zeros(space.shape(kind), np.int64) for kind in ("normal", "reduce")}
        for kind, table in tables.items():
            for e, names in enumerate(space.primitives(kind)):
                added = self.added[_position(kind, space.edges[e][0] < space.inputs)]
                table[e] = [added.get(name, 0) for name in names]  # 0: `none`, never chosen
        return CostTable(self.base, tables)

    def scaled(self, factor: float) -> "LatencyTable":
        """All of it, so many times."""
        added = {
            position: {name: round(factor * value) for name, value in names.items()}
            for position, names in self.added.items()
        }
        return replace(self, base=round(factor * self.base), added=added)

    def errors(self) -> list[float]:
        """Relative errors of the predictions, the least first."""
        pairs = [(row["predicted_ms"], row["measured_ms"]) for row in self.checked]
        return sorted(abs(predicted / measured - 1) for predicted, measured in pairs)

    def in_words(self) -> str:
        """How well it predicts."""
        errors = self.errors()
        return (
            f"predicted latencies of {len(errors)} random cells are off by "
            f"{100 * median(errors):.1f} % (median), {100 * errors[-1]:.1f} % at worst"
        )

    def to_dict(self) -> dict[str, object]:
        """Plain values."""
        return {"format": FORMAT, **asdict(self)}


def read_table(document: object, where: Mapping[str, object], space: SearchSpace) -> LatencyTable:
    """What `to_dict` gave; ValueError unless it was measured `where` and knows all operations."""
    base, added, checked, seconds = (
        find(document, key) for key in ("base", "added", "checked", "seconds")
    )
    if find(document, "format") != FORMAT or find(document, "where") != where:
        raise ValueError("was measured elsewhere")
    known = added if isinstance(added, dict) else {}
    for position, names in _operations(space).items():
        for name in names:
            value = known[position].get(name) if isinstance(known.get(position), dict) else None
            if not isinstance(value, int) or not 0 <= value <= _MOST_NS:
                raise ValueError(f"lacks {name} ({position})")
    rows = checked if isinstance(checked, list) else []
    times = [find(row, f"{key}_ms") for row in rows for key in ("predicted", "measured")]
    if not isinstance(base, int) or not 0 <= base <= _MOST_NS or not isinstance(seconds, float):
        raise ValueError("is damaged")
    if not times or not all(isinstance(ms, float) and 0 < ms < math.inf for ms in times):
        raise ValueError("is damaged")
    return LatencyTable(where, base, known, tuple(rows), seconds)


def describe_place(place: Place, batch: int, device: torch.device) -> dict[str, object]:
    """What a latency depends on beside the cells; threads are those that torch has now."""
    where = {**asdict(place), "batch": batch, "torch": str(torch.__version__)}
    return {**where, "device": describe_device(device)}


def measure_table(
    space: SearchSpace, place: Place, batch: int, device: torch.device, seconds: float, checked: int
) -> LatencyTable:
    """Time all networks in turns.

    Args:
        space: whose operations are told apart.
        place: of the networks.
        batch: images at once.
        device: that computes.
        seconds: to spend on each network, about.
        checked: random cells that are predicted.
    """
    probes = {probe.name: probe for probe in _probes(space)}
    unseen = {f"random:{seed}": random_genotype(space, seed) for seed in range(checked)}
    mixed = {f"mixed:{i}": random_genotype(space, _MIXED + i) for i in range(_SCALED_BY)}
    genotypes = {name: probe.genotype for name, probe in probes.items()} | mixed | unseen
    operations = {**PRIMITIVES, **space.operations()}
    networks = {
        name: place.network(genotype, operations).to(device).eval()
        for name, genotype in genotypes.items()
    }
    image = torch.randn(batch, place.channels, place.side, place.side, device=device)
    timed = time_networks(networks, image, seconds)
    taken = {name: timing.least * _NS for name, timing in timed.items()}
    where = describe_place(place, batch, device)
    table = LatencyTable(where, *_tell_apart(probes, taken), (), seconds)
    sums = table.costs(space)
    table = table.scaled(median(taken[n] / cost_of(g, sums, space) for n, g in mixed.items()))
    costs = table.costs(space)
    rows = [
        {
            "seed": seed,
            "predicted_ms": 1e3 * cost_of(genotype, costs, space) / _NS,
            "measured_ms": 1e3 * taken[name] / _NS,
        }
        for seed, (name, genotype) in enumerate(unseen.items())
    ]
    return replace(table, checked=tuple(rows))


@dataclass(frozen=True)
class _Probe:
    """A network that is timed: an operation at a position, skips elsewhere."""

    name: str
    position: str
    operation: str
    genotype: Genotype

    def number(self, position: str) -> int:
        """Edges at a position."""
        return sum(
            _position(kind, edge.source < cell.inputs) == position
            for kind, cell in self.genotype.cells.items()
            for edge in cell.edges
        )


def _position(kind: str, is_input: bool) -> str:
    if kind == "normal":
        return _NORMAL
    return _FROM_INPUTS if is_input else _INSIDE


def _operations(space: SearchSpace) -> dict[str, list[str]]:
    """Those that may stand at each position, `none` apart."""
    found: dict[str, list[str]] = {position: [] for position in POSITIONS}
    for kind in ("normal", "reduce"):
        zero = space.flags(kind, "is_zero")
        for e, names in enumerate(space.primitives(kind)):
            here = found[_position(kind, space.edges[e][0] < space.inputs)]
            here += [n for n, z in zip(names, zero[e], strict=True) if not z and n not in here]
    return found


def _probes(space: SearchSpace) -> Iterator[_Probe]:
    """All skip, first; then each operation at each position."""

    def cell(keeps_inputs: bool, operation: Callable[[int], str]) -> CellGenotype:
        edges = []
        for target in space.concat:
            sources = [source for _, source, _ in space.incoming(target)]
            kept = (sources if keeps_inputs else sources[::-1])[: space.kept_edges]
            edges += [Edge(operation(source), source, target) for source in kept]
        return CellGenotype(tuple(edges), space.concat, space.inputs)

    def probe(position: str, name: str) -> _Probe:
        def at(source: int) -> str:
            return name if _position("reduce", source < space.inputs) == position else _SKIP

        normal = cell(True, lambda _: name if position == _NORMAL else _SKIP)
        reduce = cell(position == _FROM_INPUTS, at)
        return _Probe(f"{name} ({position})", position, name, Genotype(normal, reduce))

    yield probe(_NORMAL, _SKIP)
    yield probe(_FROM_INPUTS, _SKIP)
    for position, names in _operations(space).items():
        yield from (probe(position, name) for name in names if name != _SKIP)


def _tell_apart(
    probes: Mapping[str, _Probe], taken: Mapping[str, float]
) -> tuple[int, dict[str, dict[str, int]]]:
    """Base, and what each operation adds, from the nanoseconds that networks took."""
    few, many = list(probes)[:2]  # skips at stride 2
    more = probes[many].number(_FROM_INPUTS) - probes[few].number(_FROM_INPUTS)
    skip = max(0.0, taken[many] - taken[few]) / more if more else 0.0
    base = taken[few] - skip * probes[few].number(_FROM_INPUTS)
    added = {position: {_SKIP: 0} for position in POSITIONS}
    added[_FROM_INPUTS][_SKIP] = round(skip)
    for name, probe in list(probes.items())[2:]:
        rest = base
        if probe.position != _FROM_INPUTS:
            rest += skip * probe.number(_FROM_INPUTS)
        number = probe.number(probe.position)
        difference = max(0.0, taken[name] - rest) / number if number else 0.0
        added[probe.position][probe.operation] = round(difference)
    return round(base), added
