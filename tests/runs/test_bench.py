"""The benchmark's ways compute the same step, and its numbers are of what they say."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mae_nas.runs import bench
from mae_nas.runs.bench import GROWING, WAYS, Setting, compare_ways
from mae_nas.runs.bench_plots import plot_growth
from mae_nas.supernet.depthwise import cpp

TINY = Setting(width=4, depth=3, side=16, batch=2)


def test_every_dense_way_computes_the_same_updates() -> None:
    moved = {}
    for name, way in WAYS.items():
        if way.sparse_ratio is None:
            step = bench._Step(way, TINY)
            before = [w.detach().clone() for w in step.weights]
            step()
            pairs = zip(before, step.weights, strict=True)
            moved[name] = torch.cat([(w.detach() - b).flatten() for b, w in pairs])
    naive = moved.pop("naive")
    assert len(moved) == 4
    for name, update in moved.items():
        assert (update - naive).norm() < 1e-3 * naive.norm(), name  # in float32


@pytest.mark.slow
def test_a_row_says_how_fast_how_much_and_by_what() -> None:
    told: list[None] = []
    names = ["naive", "fused-torch", "fused-cpp-sparse75"]
    rows = compare_ways(TINY, names, 2, lambda: told.append(None))
    assert [row["name"] for row in rows] == names
    assert len(told) == 6
    naive, fused, sparse = rows
    assert naive["ratio"] == 1
    assert (naive["backend"], fused["backend"]) == ("reference", "fused-torch")
    assert sparse["backend"] == ("fused-cpp" if cpp.library() else "fused-torch")
    assert naive["saved_mb"] > fused["saved_mb"] > sparse["saved_mb"] > 0
    for row in rows:
        assert row["least"] <= row["seconds"] <= row["most"]
        assert row["ratio"] == pytest.approx(naive["seconds"] / row["seconds"])
        assert 0 < row["of_copy_rate"] < 1
        assert 0 < row["of_multiplication_rate"] < 1


def test_the_work_that_is_needed_grows_with_the_images() -> None:
    one, two = (bench.multiply_adds(replace(TINY, batch=batch)) for batch in (1, 2))
    assert two == 2 * one


def test_growth_is_drawn_a_line_for_each_way(tmp_path: Path) -> None:
    sizes = [(32, 16), (16, 16), (64, 16), (32, 8), (32, 32)]
    rows = [
        {"name": name, "side": side, "width": width, "batch": 2, "seconds": side * width / 1e3}
        for side, width in sizes
        for name in GROWING
    ]
    png, svg = plot_growth(rows, tmp_path / "growth")
    assert png.stat().st_size > 10_000
    text = svg.read_text()
    assert all(f"<!-- {name} -->" in text for name in GROWING)
