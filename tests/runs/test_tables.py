import json
import math
from pathlib import Path

import pytest

from mae_nas.runs.tables import JsonLines, MetricsTable


def test_json_lines_leave_out_a_row_that_a_kill_cut(tmp_path: Path) -> None:
    table = JsonLines(tmp_path / "a.jsonl")
    assert table.rows() == []
    rows = [{"step": step, "é": [0.1, None]} for step in (2, 4)]
    for row in rows:
        table.append(row)
    with table.path.open("a") as file:
        file.write('{"step": 6, "é": [0.')
    assert table.rows() == rows
    table.append({"step": 8})
    assert table.rows() == [*rows, {"step": 8}]


@pytest.mark.parametrize(
    ("last_step", "kept"), [(0, []), (3, [2]), (4, [2, 4]), (7, [2, 4]), (9, [2, 4, 8])]
)
def test_json_lines_are_cut_to_the_checkpoint_and_to_regular_steps(
    tmp_path: Path, last_step: int, kept: list[int]
) -> None:
    table = JsonLines(tmp_path / "a.jsonl")
    for step in (2, 4, 5, 8):  # 5 ended a search that then went on
        table.append({"step": step})
    table.cut(range(0, last_step + 1, 2))
    assert [row["step"] for row in table.rows()] == kept
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_cutting_what_was_never_written_writes_nothing(tmp_path: Path) -> None:
    JsonLines(tmp_path / "a.jsonl").cut(range(4))
    MetricsTable(tmp_path / "a.csv").cut(3)
    assert list(tmp_path.iterdir()) == []


def test_metrics_keep_every_digit_and_leave_nan_empty(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path / "metrics.csv")
    values = {"step": 1, "a": 0.1 + 0.2, "b": math.nan, "c": 5e-324, "d": math.pi * 1e300}
    table.append(values)
    (row,) = table.rows()
    assert list(row) == list(values)
    assert row["b"] == ""
    assert {k: float(row[k]) for k in "acd"} == {k: values[k] for k in "acd"}
    table.append({**values, "step": 2})
    assert [row["step"] for row in table.rows()] == ["1", "2"]
    assert table.path.read_text().count("step") == 1


def test_metrics_drop_a_row_that_a_kill_cut_and_rows_behind_the_checkpoint(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path / "metrics.csv")
    for step in (10, 20, 30):
        table.append({"step": step, "loss": step / 7, "other": 1.0})
    whole = table.path.read_text()
    with table.path.open("a") as file:
        file.write("40,5.71")
    assert [row["step"] for row in table.rows()] == ["10", "20", "30"]
    table.cut(29)
    assert table.path.read_text() == whole.rsplit("30,", 1)[0]
    table.append({"step": 30, "loss": 30 / 7, "other": 1.0})
    assert table.path.read_text() == whole
    table.cut(9)
    assert not table.path.exists()


def test_rows_read_back_are_what_json_wrote(tmp_path: Path) -> None:
    table = JsonLines(tmp_path / "a.jsonl")
    row = {"step": 3, "x": 0.1 + 0.2, "y": "ü\n"}
    table.append(row)
    assert table.rows() == [row]
    assert len(table.path.read_text().splitlines()) == 1
    assert json.loads(table.path.read_text()) == row


def test_files_that_no_search_wrote_are_refused_in_one_line(tmp_path: Path) -> None:
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.csv"
    lines.write_text('{"step": 1}\n[2]\n')
    with pytest.raises(ValueError, match=r"a\.jsonl: line 2 is not a row of a search$"):
        JsonLines(lines).rows()
    table.write_text("name,loss\nx,0.5\n")
    with pytest.raises(ValueError, match=r"a\.csv: not the metrics of a search"):
        MetricsTable(table).rows()
