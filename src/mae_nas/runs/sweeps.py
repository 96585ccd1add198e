"""The result of a sweep: a row for each job, as sweep.csv and as one picture."""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mae_nas.runs.files import write_text
from mae_nas.runs.listing import MEASURES, RunState, printable


def columns_of(command: str) -> tuple[str, ...]:
    """Of the table of a sweep of `search`, `train` or `pretrain`, before those of its axes."""
    return ("job", "overrides", "status", *MEASURES[command], "reason")


@dataclass(frozen=True)
class SweepRow:
    """One job.

    Args:
        job: its number, from 0.
        point: the values of the sweep's axes, as written.
        status: of its run (see `RunState`), `impossible` (refused as a configuration) or `waiting`.
        run: what its folder shows.
        reason: why there is no result.
        command: what the sweep is of.
    """

    job: int
    point: Mapping[str, str]
    status: str
    run: RunState
    reason: str = ""
    command: str = "search"

    @property
    def has_result(self) -> bool:
        """Whether the run has come to its end."""
        return self.status in ("finished", "collapsed")

    def cells(self) -> dict[str, object]:
        """The table's columns."""
        overrides = " ".join(f"{key}={value}" for key, value in self.point.items())
        measures = self.run.measures(self.command).values()
        values = (self.job, overrides, self.status, *measures, self.reason)
        return dict(zip(columns_of(self.command), values, strict=True))


def write_table(rows: Sequence[SweepRow], path: Path) -> None:
    """Write sweep.csv: a column each for the job's facts, then one for each axis."""
    text = io.StringIO()
    cells = [{**row.cells(), **row.point} for row in rows]
    writer = csv.DictWriter(text, list(cells[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    write_text(path, text.getvalue())


def refuse_other_axes(path: Path, axes: Collection[str]) -> None:
    """Raise one line if `path` is the table of a sweep over other axes than `axes`."""
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            old = set(next(csv.reader(file), [])) - {
                name for command in MEASURES for name in columns_of(command)
            }
        if old != set(axes):
            over = (
                f"{', '.join(sorted(old)) or 'nothing'}, this command line over {', '.join(axes)}"
            )
            over = printable(over)  # whoever wrote the table
            raise ValueError(
                f"hydra.sweep.dir: {path.parent} is of a sweep over {over}; choose another"
            )


def mistakes(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """Rows whose failure is none of the grid's holes.

    A refused job is a hole (a patch as large as the image, say) where each of its values has a
    result in another one; a value that never has one is a mistake.
    """
    good = [row.point for row in rows if row.has_result]
    worked = {axis: {point[axis] for point in good} for axis in rows[0].point}

    def is_hole(row: SweepRow) -> bool:
        works = [value in worked[axis] for axis, value in row.point.items()]
        return row.status == "impossible" and len(works) > 1 and all(works)

    ended = ("failed", "unreadable", "impossible")
    return [row for row in rows if row.status in ended and not is_hole(row)]


def settled(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """The rows, those of mistakes as failed."""
    wrong = {row.job for row in mistakes(rows)}
    return [replace(row, status="failed") if row.job in wrong else row for row in rows]
