"""Append-only rows that survive a kill: metrics.csv and genotypes.jsonl."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from mae_nas.runs.files import append_line, write_text


class JsonLines:
    """A file of JSON objects, one a line, each with its `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, object]]:
        """All whole rows; a last line cut short by a kill is left out."""
        rows = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            if not isinstance(row, dict) or "step" not in row:
                raise ValueError(f"{self.path}: line {len(rows) + 1} is not a row of a search")
            rows.append(row)
        return rows

    def append(self, row: Mapping[str, object]) -> None:
        append_line(self.path, json.dumps(row))

    def cut(self, steps: range) -> None:
        """Keep the rows of some steps."""
        if self.path.exists():
            rows = [row for row in self.rows() if row["step"] in steps]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))


class MetricsTable:
    """A CSV of numbers, one row per logged step; the header comes from the first row."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, str]]:
        """All whole rows, as written."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not all((row.get("step") or "").isdigit() for row in rows):
            raise ValueError(f"{self.path}: not the metrics of a search; its first column is step")
        return [row for row in rows if None not in row and None not in row.values()]

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row; numbers keep all their digits, NaN is an empty cell."""
        if not self.path.exists():
            append_line(self.path, ",".join(row))
        append_line(self.path, ",".join("" if v != v else repr(v) for v in row.values()))

    def cut(self, last_step: int) -> None:
        """Drop rows written after `last_step`."""
        rows = [row for row in self.rows() if int(row["step"]) <= last_step]
        if rows:
            lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
            write_text(self.path, "".join(line + "\n" for line in lines))
        else:
            self.path.unlink(missing_ok=True)
