"""`mae-nas search`: what a search builds, reads, draws and records."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from mae_nas.checks import raise_all
from mae_nas.cli.assemble import Maker, Parts, assemble, common_parts, load, ready
from mae_nas.cli.build import build
from mae_nas.cli.check import SEARCH
from mae_nas.cli.masked import MaskedRun, yardsticks_of
from mae_nas.cli.run import Config
from mae_nas.data import ImageStore, SearchData
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.loggers import RunLog
from mae_nas.runs.pictures import Pictures
from mae_nas.runs.records import network_costs, search_record
from mae_nas.runs.trainer import Efficiency
from mae_nas.search import BilevelSettings, SearchModule, SearchReading, take_reading
from mae_nas.search.reading import chance_in_words, edge_rows, reading_row
from mae_nas.supernet import CellMaker, FusedCell, ReferenceCell, Supernet

log = logging.getLogger("mae_nas")

LAYOUT = SEARCH


@dataclass(frozen=True, kw_only=True)
class SearchRun(MaskedRun[SearchReading]):
    """A search about to start or to go on.

    Args:
        parts: what its module is made of.
    """

    module: SearchModule
    parts: Parts

    what = "search"
    reading = SearchReading

    @property
    def every(self) -> Path:
        return self.folder.genotypes

    @property
    def last(self) -> Path:
        return self.folder.genotype

    @property
    def smaller(self) -> str:
        return f"lower supernet.width than {self.parts.plan.width}"

    def images(self, steps: int) -> float:
        """One batch for w in every step, and one for α in those after the warm-up."""
        return self.data.batch_size * (2 * steps - min(self.module.arch_start, steps))

    def take(self, earlier: Sequence[SearchReading]) -> SearchReading:
        held_out = self.data.held_out_batches()
        return take_reading(self.module, self.parts.space, held_out, earlier)

    def values(self, reading: SearchReading) -> dict[str, float | str]:
        return reading_row(reading, self.parts.space)

    def ends(self, reading: SearchReading) -> bool:
        return self.config["on_collapse"] == "stop" and reading.verdict == "collapsed"

    def status(self, row: Mapping[str, float], readings: Sequence[SearchReading]) -> str:
        """Both losses, the last skips beside those of chance, the relative entropy of α."""
        if not self.module.relaxation.learns:
            return f"loss w {row['weight_loss']:.3f}"
        skips = "–"
        if readings:
            skips = f"{readings[-1].skips['normal']}{chance_in_words(readings[-1])}"
        return (
            f"loss w {row['weight_loss']:.3f} α {row['arch_loss']:.3f}  skips {skips}  "
            f"entropy {row['entropy_normal']:.4f}"
        )

    def draw(self, readings: Sequence[SearchReading], run_log: RunLog) -> None:
        space, last = self.parts.space, readings[-1]
        Pictures(self.folder, space, self.module, self.data, self.yardsticks).draw(readings)
        run_log.drawn(last, edge_rows(last, space), self.folder.plots)

    def record(self, readings: Sequence[SearchReading]) -> dict[str, object]:
        return {
            **search_record(readings, self.folder, self.parts.space),
            **super().record(readings),
            "costs": network_costs(self.module, self.data),
        }

    def close(self, record: Mapping[str, Any], readings: Sequence[SearchReading]) -> None:
        log.info("%s", readings[-1].in_words())
        super().close(record, readings)
        log.info("genotype   %s", self.folder.genotype)
        log.info("pictures   %s: cells.png, alpha.png, losses.png, …", self.folder.plots)


def prepare(
    config: Config, folder: RunFolder, console: Console, store: ImageStore | None = None
) -> SearchRun:
    """Build everything from a checked configuration; read the data, unless `store` holds them."""
    settings, efficiency, source = common_parts(config, Efficiency)
    data = SearchData(
        source,
        config["seed"],
        source.batch_size,
        settings.accumulate,
        efficiency.workers,
        efficiency.resident,
    )
    load(data, config, console, store)
    maker = Maker(config)
    parts = assemble(maker, data.side, data.channels)
    raise_all(maker.problems)
    assert parts is not None  # or something would be wrong
    make_cell: CellMaker = ReferenceCell
    if efficiency.cell == "fused":
        make_cell = partial(FusedCell, compiles=efficiency.cpp, recomputes=efficiency.recompute)
    module = SearchModule(
        parts.relaxation,
        Supernet(
            parts.relaxation.space, data.channels, parts.objective.stages, parts.plan, make_cell
        ),
        parts.objective,
        build(BilevelSettings, config["search"], {}, "search"),
        settings.epochs(data.steps_per_epoch),
        data.steps_per_epoch,
    )
    last_step = ready(module, settings)
    return SearchRun(
        config=config,
        folder=folder,
        settings=settings,
        data=data,
        parts=parts,
        module=module,
        masking=parts.masking,
        yardsticks=yardsticks_of(parts.objective, data),
        last_step=last_step,
    )
