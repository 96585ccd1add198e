"""Statistics against enumerations, and records to tables by the script itself."""

import json
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mae_nas.search.collapse import chance_of_skips
from mae_nas.spaces import S0

SCRIPTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import evidence

    return evidence


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "evidence.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_chance_of_a_total_is_that_of_every_way_to_reach_it(evidence: ModuleType) -> None:
    single = chance_of_skips(S0(), "normal")
    total = np.zeros(2 * len(single) - 1)
    for one, other in product(range(len(single)), repeat=2):
        total[one + other] += single[one] * single[other]
    for skips in ([0, 0], [1, 1], [2, 3], [8, 7]):
        as_rare = total[total <= total[sum(skips)] * (1 + 1e-9)].sum()
        assert evidence.against_chance(S0(), skips) == pytest.approx(as_rare)
    assert evidence.against_chance(S0(), [1, 1]) > 0.5
    assert evidence.against_chance(S0(), [8, 8, 8]) < 1e-6


def test_exact_permutations(evidence: ModuleType) -> None:
    assert evidence.permutation_p([8, 8, 7, 6, 8], [0, 1, 0, 1, 2]) == 2 / 252  # none is as far
    assert evidence.permutation_p([1, 2, 3], [1, 2, 3]) == 1
    values = [1, 2, 6, 3, 4, 5]
    sums = [sum(chosen) for chosen in combinations(values, 3)]
    expected = sum(abs(each - 10.5) >= 1.5 for each in sums) / len(sums)
    assert evidence.permutation_p(values[:3], values[3:]) == expected


def test_intervals_hold_the_difference_and_are_those_of_the_seed(evidence: ModuleType) -> None:
    one, other = [8, 8, 7, 6, 8], [0, 1, 0, 1, 2]
    low, high = evidence.bootstrap_interval(one, other)
    assert low < np.mean(one) - np.mean(other) < high
    assert (low, high) == evidence.bootstrap_interval(one, other)
    assert "not distinguishable" in evidence.compared([1, 2, 3], [2, 1, 3])
    assert "not distinguishable" not in evidence.compared(one, other)


def test_results_stand_between_their_markers(evidence: ModuleType) -> None:
    text = "a\n<!-- results: x -->\nold\n<!-- end: x -->\nb\n<!-- results: y -->\n"
    new = evidence.replaced(text, "x", "new\n")
    assert new == text.replace("old", "new")
    assert evidence.replaced(new, "x", "new\n") == new
    for claim in ("y", "z"):  # an end is missing, or both
        with pytest.raises(ValueError, match=f"no place for the results of {claim}"):
            evidence.replaced(text, claim, "new\n")


def test_the_readme_has_a_place_for_every_claim(evidence: ModuleType) -> None:
    for report in SCRIPTS.glob("*/report.py"):
        evidence.replaced(evidence.README.read_text(), report.parent.name, "")


def a_record(seed: int, upsample: str, ratio: float, skips: int) -> dict[str, Any]:
    course = {"step": [10, 20, 30], "skips_normal": [1, skips, skips]}
    config = {
        "space": {"_target_": "mae_nas.spaces.S0"},
        "decoder": {"upsample": upsample},
        "mask": {"ratio": ratio},
    }
    return {
        "config": {**config, "seed": seed},
        "seed": seed,
        "skip_counts": {"normal": skips},
        "final": {"held_out_loss": 0.5},
        "course": course,
        "wall_seconds": 60.0,
        "device": {"name": "a CPU"},
        "git": {"commit": "0123456789"},
    }


def test_a_table_is_a_function_of_the_records(tmp_path: Path) -> None:
    records = [
        a_record(seed, upsample, ratio, skips)
        for upsample, ratio, all_skips in (
            ("shuffle", 0.2, [8, 7, 8]),
            ("shuffle", 0.8, [3, 1, 2]),
            ("nearest", 0.2, [0, 1, 0]),
            ("nearest", 0.8, [1, 1, 2]),
        )
        for seed, skips in enumerate(all_skips)
    ]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    done = run("report", "table3", "--folder", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    table = (tmp_path / "table.md").read_text()
    [row] = [line for line in table.splitlines() if line.startswith("| S0 | simmim | 0.2 ")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[3:6] == ["8 7 8", "7.67 ± 0.58", "1.14"]
    assert cells[-2:] == ["20 20 20", "8"]
    assert "12 searches, 0.2 hours of one thread in all, on a CPU; commits 0123456." in table
    assert "| S0 | 0.8 | 3 | +0.67 [" in table
    assert "not distinguishable" in table
    assert (tmp_path / "skips.png").stat().st_size > 10_000
    before = (tmp_path / "skips.png").read_bytes()
    assert run("report", "table3", "--folder", tmp_path).returncode == 0
    assert (tmp_path / "table.md").read_text() == table
    assert (tmp_path / "skips.png").read_bytes() == before


def test_only_finished_runs_are_collected_and_once(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for name, state in (("a", "finished"), ("b", "failed"), ("c", None)):
        (sweep / name).mkdir(parents=True)
        if state:
            summary = {"state": state, "config": {"seed": 3}, "seed": 3}
            (sweep / name / "summary.json").write_text(json.dumps(summary))
    reading = {"step": 5, "held_out_loss": 0.5}
    reading |= {name: {"normal": 1, "reduce": 2} for name in ("skips", "entropy")}
    (sweep / "a" / "genotypes.jsonl").write_text(json.dumps(reading) + "\n")
    header = "step,weight_loss,grad_norm_alpha_normal,rms_F1\n"
    (sweep / "a" / "metrics.csv").write_text(header + "5,0.1,0.25,\n")
    for _ in range(2):
        done = run("collect", "table3", sweep, "--folder", tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"table3: 1 finished runs in {sweep}\n"
        [record] = map(json.loads, (tmp_path / "records.jsonl").read_text().splitlines())
        assert record["course"]["skips_reduce"] == [2]
        assert record["metrics"] == {
            "step": [5.0],
            "grad_norm_alpha_normal": [0.25],
            "rms_F1": [None],
        }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("report", "table9"), "table9: no such claim; there are "),
        (("collect", "table3", "nowhere"), "nowhere"),
        (("report", "table3", "--folder", "nowhere"), "no records yet; make table3 makes some"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
