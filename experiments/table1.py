"""What both halves of the paper's Table 1 share: networks trained under one recipe, and their rows.

Networks of the cells that searches found, of published and of random cells are trained alike; what
the papers themselves print stands beside them, named as theirs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from evidence import Record, Sweep, axes_at, cells_found, check_replicates, grouped, is_training
from inference import DIFFERENCES, Cells, cells_of, compared, spread
from matplotlib.figure import Figure
from tables import costs, table

from mae_nas.genotype import PUBLISHED
from mae_nas.network.complexity import Complexity, Place, complexity_of, measure_complexity
from mae_nas.network.peers import timm_network
from mae_nas.runs import canvas
from mae_nas.runs.listing import counted

OURS, RANDOM = "found here", "random cells"
PROFILED = "timm's "
"""Before the name of a network of another family, which is counted and not trained."""
UNKNOWN = "no DARTS cell that is published"


@dataclass(frozen=True)
class Row:
    """A row as the paper prints it.

    Args:
        model: its name there.
        params, macs: in M; accuracy: top-1 in percent; cost: of the search, GPU days.
        with_labels: whether its search used labels.
        cell: the published genotype that it is of, or timm's model, or why there is none.
    """

    model: str
    params: str
    macs: str
    accuracy: str
    cost: str
    with_labels: bool
    cell: str


@dataclass(frozen=True)
class Half:
    """One data set's half of the table.

    Args:
        axes: by scale: seeds, cells, and the network and recipe that train them.
        experiment: of the searches.
        data: option of the trainings.
        rows: of the paper.
        place: at which networks are counted, that of the published ones.
    """

    axes: Mapping[str, Sequence[str]]
    experiment: str
    data: str
    rows: Sequence[Row]
    place: Place

    def sweeps(self, scale: str, runs: Path) -> Iterator[Sweep]:
        """Searches; then the networks of what they found, of published and of random cells."""
        seeds, cells, *training = axes_at(scale, self.axes)
        yield Sweep("searches", (seeds,), self.experiment)
        genotypes = ",".join([*cells_found(runs / "searches"), cells.removeprefix("genotype=")])
        trained = (f"data={self.data}", f"genotype={genotypes}", seeds, *training)
        yield Sweep("networks", trained, command="train")

    def tables(self, records: Sequence[Record]) -> str:
        """What was trained here; then the paper's rows with their cells counted here."""
        networks = networks_of(records)
        check_replicates(
            {(name, place): same for name, each in networks.items() for place, same in each}, AXES
        )
        head = ("cells", "seeds", "parameters, M", "multiply-adds, M", "test top-1, %, by seed")
        head += ("mean ± sd", "less random cells")
        return "\n".join(
            (
                "# Networks trained with labels under one recipe\n",
                costs(records),
                recipes(records),
                table(head, trained(networks)),
                "The paper's rows. Printed are the paper's numbers; counted here, at "
                f"{self.place.size.width} channels and {self.place.size.depth} cells:\n",
                table(
                    (
                        *("model", "labels in search", "printed: parameters, M"),
                        *("multiply-adds, M", "top-1, %", "GPU days", "counted: cell"),
                        *("parameters, M", "multiply-adds, M", "trained here: top-1, %"),
                    ),
                    self._printed(networks),
                ),
                DIFFERENCES,
            )
        )

    def results(self, records: Sequence[Record]) -> str:
        """The README's lines."""
        networks = networks_of(records)
        rows = [
            (row.model, row.accuracy, _accuracy(networks, row.cell) or _why_not(row.cell))
            for row in self.rows
        ]
        rows.append((RANDOM, "–", _accuracy(networks, RANDOM) or "–"))
        head = ("cells", "top-1 in %, the paper's own networks", "top-1 in %, trained here")
        return table(head, rows) + "\n" + recipes(records)

    def _printed(self, networks: "Networks") -> Iterator[tuple[object, ...]]:
        for row in self.rows:
            found, here = counted_cell(row.cell, self.place), _accuracy(networks, row.cell)
            counts = "––" if found is None else _counts(found.params, found.macs)
            labels = "yes" if row.with_labels else "no"
            printed = (row.params, row.macs, row.accuracy, row.cost, row.cell)
            yield row.model, labels, *printed, *counts, here or _why_not(row.cell)


@cache
def counted_cell(cell: str, place: Place) -> Complexity | None:
    """What a row's cell or model of timm costs; None where it is neither."""
    if cell in PUBLISHED:
        return measure_complexity(PUBLISHED[cell], place)
    if not cell.startswith(PROFILED):
        return None
    make = partial(timm_network, cell.removeprefix(PROFILED), place.channels, place.classes)
    return complexity_of(make, place.channels, place.side)


AXES = ("genotype",)
Networks = Mapping[str, Sequence[tuple[str, Sequence[Record]]]]
"""Trainings by kind of cell, then by the cell."""


def networks_of(records: Sequence[Record]) -> Networks:
    """What was trained: published cells by their names, those found, random ones."""
    found: dict[Cells, list[str]] = {}
    for search in (record for record in records if not is_training(record)):
        found.setdefault(cells_of(search["genotype"]), []).append(f"seed {search['seed']}")
    kinds: dict[str, list[tuple[str, Sequence[Record]]]] = {}
    for (given,), same in grouped(filter(is_training, records), "genotype").items():
        cell, name = cells_of(same[0]["genotype"]), str(given)
        kind = RANDOM if name.startswith("random:") else name if name in PUBLISHED else OURS
        if kind == OURS:
            name = ", ".join(found.get(cell, ["elsewhere"]))
        kinds.setdefault(kind, []).append((name, same))
    return kinds


def accuracies(each: Sequence[tuple[str, Sequence[Record]]]) -> list[float]:
    """Test accuracy after the last epoch, percent: of one cell by seed, of several their means.

    Seeds of a cell are alike: cells, not seeds, are what a kind has independent values of.
    """
    found = [[100 * record["test_top1"] for record in same] for _, same in each]
    return found[0] if len(found) == 1 else [float(np.mean(values)) for values in found]


def trained(networks: Networks) -> Iterator[tuple[object, ...]]:
    """A row for each cell, and one for several of a kind together."""
    random = networks.get(RANDOM, ())
    chance = [float(np.mean(accuracies([cell]))) for cell in random]
    for kind, each in networks.items():
        for name, same in each:
            values, cost = accuracies([(name, same)]), same[0]["costs"]
            less = f"{np.mean(values) - np.mean(chance):+.2f}, one cell"
            yield (
                name if kind in (name, RANDOM) else f"{kind}, {name}",
                len(same),
                *_counts(cost["params"], cost["macs"]),
                " ".join(f"{value:.2f}" for value in values),
                spread(values),
                less if chance and kind != RANDOM else "–",
            )
        if len(each) > 1:
            means = accuracies(each)
            yield (
                f"{kind}, {len(each)} cells",
                *("–", "–", "–"),
                " ".join(f"{value:.2f}" for value in means),
                spread(means),
                compared(means, chance) if chance and kind != RANDOM else "–",
            )


def _counts(params: int, macs: int) -> tuple[str, str]:
    """In M."""
    return f"{params / 1e6:.3f}", f"{macs / 1e6:.1f}"


def recipes(records: Sequence[Record]) -> str:
    """How the networks were trained: a line."""
    lines = set()
    for record in filter(is_training, records):
        config, epochs = record["config"], record["epochs"]
        size, steps = config["network"], config["trainer"]["max_steps"]
        stopped = f", stopped after {steps} steps" if steps and steps > 0 else ""
        lines.add(
            f"{size['width']} channels, {size['depth']} cells, {epochs} epochs of batches of "
            f"{config['data']['batch_size']}{stopped}; last epoch, never the best.\n"
        )
    return "".join(sorted(lines)) or "No network has been trained yet.\n"


def _accuracy(networks: Networks, kind: str) -> str:
    each = networks.get(kind, ())
    if not each:
        return ""
    number = counted(len(each), "cell") if len(each) > 1 else counted(len(each[0][1]), "seed")
    return f"{spread(accuracies(each))} ({number})"


def _why_not(cell: str) -> str:
    """Why a row's network was not trained."""
    if cell.startswith(PROFILED):
        return "profile only: another family"
    return "not trained" if cell in PUBLISHED or cell == OURS else cell


@canvas.styled
def draw(records: Sequence[Record], folder: Path) -> None:
    """`curves.png`: test accuracy and loss over the epochs, means over seeds."""
    networks = networks_of(records)
    if not networks:
        return
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    for panel, (key, title, times) in zip(
        figure.subplots(1, 2),
        (("top1", "test top-1, %", 100), ("loss", "test cross entropy", 1)),
        strict=True,
    ):
        for kind, each in networks.items():
            for number, (name, same) in enumerate(each):
                rows = min(len(record["course"]["epoch"]) for record in same)
                values = [record["course"][key][:rows] for record in same]
                style = "o--" if kind == RANDOM else "o-"
                label = name if kind in (name, RANDOM) else f"{kind}, {name}"
                width = 2.4 if kind == OURS else 1.4
                epochs = same[0]["course"]["epoch"][:rows]
                mean = times * np.mean(np.array(values, float), axis=0)
                panel.plot(epochs, mean, style, ms=3, lw=width, label=label if number < 6 else None)
        panel.set(title=title, xlabel="epoch")
        panel.legend(fontsize=8)
    canvas.save(figure, folder / "curves.png")
