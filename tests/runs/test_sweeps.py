import csv
from dataclasses import replace
from pathlib import Path

from mae_nas.runs.listing import RunState
from mae_nas.runs.sweep_plots import plot_sweep
from mae_nas.runs.sweeps import SweepRow, mistakes, settled, write_table


def row(
    status: str = "finished", loss: float | None = 0.5, chance: float = 1.14, **point: str
) -> SweepRow:
    run = RunState(Path("x"), status, 6, "ok", loss, None if loss is None else 2, chance, 3.0)
    return SweepRow(0, point, status, run, "" if loss else "no room, it says")


def test_the_table_has_a_line_for_each_job_and_a_column_for_each_axis(tmp_path: Path) -> None:
    rows = [row(seed="0", ratio="0.2"), row("impossible", None, seed="1", ratio="0.2")]
    write_table(rows, tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        good, bad = csv.DictReader(file)
    assert list(good)[:7] == [
        *("job", "overrides", "status", "skips_normal", "loss", "verdict", "seconds")
    ]
    assert good["overrides"] == "seed=0 ratio=0.2"
    assert (good["skips_normal"], good["loss"], good["seed"]) == ("2", "0.5", "0")
    assert (good["chance_normal"], good["reason"]) == ("1.14", "")
    assert (bad["status"], bad["loss"], bad["reason"]) == ("impossible", "", "no room, it says")


def test_a_sweep_of_trainings_shows_accuracies(tmp_path: Path) -> None:
    run = RunState(Path("x"), "finished", 6, loss=0.5, seconds=3.0, top1=0.75)
    rows = [SweepRow(0, {"genotype": "DARTS_V2"}, "finished", run, command="train")]
    write_table(rows, tmp_path / "sweep.csv")
    text = (tmp_path / "sweep.csv").read_text()
    assert text.splitlines() == [
        "job,overrides,status,top1,loss,seconds,reason,genotype",
        "0,genotype=DARTS_V2,finished,0.75,0.5,3.0,,DARTS_V2",
    ]
    plot_sweep(rows, tmp_path)
    assert "top-1 accuracy" in (tmp_path / "sweep.svg").read_text()


def test_a_hole_in_the_grid_is_no_mistake() -> None:
    grid = [row(p="2", r=".2"), row(p="2", r=".8"), row(p="16", r=".2")]
    hole = row("impossible", None, p="16", r=".8")
    assert mistakes([*grid, hole]) == []


def test_a_value_that_never_works_is_a_mistake() -> None:
    wrong = [row("impossible", None, r="2.0", p=p) for p in ("2", "4")]
    good = [row(r=".2", p=p) for p in ("2", "4")]
    assert mistakes([*good, *wrong]) == wrong
    assert mistakes(wrong[:1]) == wrong[:1]


def test_a_refused_job_of_the_only_axis_is_a_mistake() -> None:
    rows = [row(r=".2"), row("impossible", None, r=".2")]
    assert mistakes(rows) == rows[1:]


def test_a_mistake_is_shown_as_failed_and_a_hole_is_not() -> None:
    grid = [row(p="2", r=".2"), row(p="2", r=".8"), row(p="16", r=".2")]
    refused = [row("impossible", None, p=p, r=r) for p, r in (("16", ".8"), ("16", "2."))]
    rows = [replace(each, job=number) for number, each in enumerate([*grid, *refused])]
    assert [each.status for each in settled(rows)][3:] == ["impossible", "failed"]


def test_failures_are_mistakes_and_stopped_jobs_are_not() -> None:
    rows = [row("failed", r="1"), row("stopped", r="2"), row("unreadable", r="3"), row(r="4")]
    assert mistakes(rows) == [rows[0], rows[2]]


def test_one_axis_gives_curves_and_two_give_maps(tmp_path: Path) -> None:
    plot_sweep([row(r=r, seed=s) for r in (".2", ".6") for s in "01"], tmp_path / "curves")
    maps = [row(r=r, p=p, seed=s) for r in (".2", ".6") for p in "48" for s in "01"]
    maps[-2:] = [row("impossible", None, r=".6", p="8", seed=s) for s in "01"]
    plot_sweep(maps, tmp_path / "maps")
    curves = (tmp_path / "curves" / "sweep.svg").read_text()
    grid = (tmp_path / "maps" / "sweep.svg").read_text()
    for text in (curves, grid):
        assert "<!-- skips of the normal cell (chance 1.14) -->" in text
    assert "line: mean over seeds" in curves
    assert "impossible" in grid
    assert grid.count("<!-- ± 0 -->") == 6  # three cells in each of two maps
    assert {p.name for p in (tmp_path / "maps").iterdir()} == {"sweep.png", "sweep.svg"}


def test_many_long_values_leave_room_for_the_curve(tmp_path: Path) -> None:
    names = [f'"runs/table3-small/searches/decoder=simmim,seed={i},space=s0"' for i in range(98)]
    plot_sweep([row(genotype=name) for name in names], tmp_path)  # a warning would be an error
    assert (tmp_path / "sweep.png").exists()


def test_only_what_came_to_its_end_is_in_the_picture(tmp_path: Path) -> None:
    rows = [row(r="1"), row(r="2"), row("stopped", 99.0, r="1"), row("failed", 99.0, r="2")]
    plot_sweep(rows, tmp_path)
    assert "<!-- 100 -->" not in (tmp_path / "sweep.svg").read_text()


def test_skips_of_several_spaces_stand_beside_the_chance_of_each(tmp_path: Path) -> None:
    spaces = [row(space=space, chance=c) for space, c in (("s0", 1.14), ("s2", 2.5))]
    plot_sweep(spaces, tmp_path / "curves")
    plot_sweep(
        [row(r=r, **s.point, chance=s.run.chance_normal) for r in "12" for s in spaces], tmp_path
    )
    for path in (tmp_path, tmp_path / "curves"):
        title = "<!-- skips of the normal cell (chance 1.14, 2.50) -->"
        assert title in (path / "sweep.svg").read_text()
    grid = (tmp_path / "sweep.svg").read_text()
    assert (grid.count("<!-- chance 1.14 -->"), grid.count("<!-- chance 2.50 -->")) == (2, 2)
