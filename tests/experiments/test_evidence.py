"""Statistics against enumerations, and records to tables by the script itself."""

import json
import shutil
import subprocess
import sys
from fractions import Fraction
from importlib import import_module
from itertools import combinations
from math import comb
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mae_nas.cli.compose import compose
from mae_nas.cli.jobs import split_values
from mae_nas.genotype import read_genotype
from mae_nas.search.collapse import chance_of_skips
from mae_nas.spaces import S0, S1, S2, S3

SCRIPTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def inference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import inference

    return inference


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import evidence

    return evidence


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "evidence.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_chance_of_a_skip_is_what_noise_gives(inference: ModuleType) -> None:
    for space, share in ((S0(), Fraction(1, 7)), (S2(), Fraction(1, 2)), (S3(), Fraction(1, 2))):
        assert inference.chance_of_a_skip(space) == share
        drawn = chance_of_skips(space, "normal")  # 20,000 cells
        for k, frequency in enumerate(drawn):
            exact = float(comb(8, k) * share**k * (1 - share) ** (8 - k))
            assert abs(frequency - exact) < 5 * (exact * (1 - exact) / 20_000) ** 0.5 + 1e-12
    with pytest.raises(ValueError, match="S1: its edges differ"):
        inference.chance_of_a_skip(S1())


def test_a_total_against_chance_is_the_exact_binomial(inference: ModuleType) -> None:
    assert inference.against_chance(S0(), [8]) == pytest.approx(7.0**-8)
    assert inference.against_chance(S0(), [8] * 5) == pytest.approx(7.0**-40)
    assert inference.against_chance(S2(), [0, 0]) == pytest.approx(2 * 0.5**16)  # 16 skips as well
    assert inference.against_chance(S2(), [3, 5]) == 1
    assert inference.told(7.0**-40) == "< 0.0001"


def test_exact_permutations(inference: ModuleType) -> None:
    assert (
        inference.permutation_p([([8, 8, 7, 6, 8], [0, 1, 0, 1, 2])]) == 2 / 252
    )  # none is as far
    assert inference.permutation_p([([1, 2, 3], [1, 2, 3])]) == 1
    values = [1, 2, 6, 3, 4, 5]
    sums = [sum(chosen) for chosen in combinations(values, 3)]
    expected = sum(abs(each - 10.5) >= 1.5 for each in sums) / len(sums)
    assert inference.permutation_p([(values[:3], values[3:])]) == expected


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_an_interval_holds_what_its_own_test_does_not_refute(
    inference: ModuleType, shift: float
) -> None:
    draws = np.random.default_rng(5).normal(size=(2, 5))
    one, other = (draws[0] + shift).tolist(), draws[1].tolist()
    low, high = inference.permutation_interval([(one, other)])

    def tails(by: float) -> tuple[float, float]:
        """P(a division is as high, as low), once the shift is taken off: by every division."""
        moved = [x - by for x in one]
        values, observed = [*moved, *other], sum(moved)
        sums = [sum(chosen) for chosen in combinations(values, 5)]
        high = sum(s >= observed - 1e-9 for s in sums) / len(sums)
        return high, sum(s <= observed + 1e-9 for s in sums) / len(sums)

    assert min(tails(low - 1e-6)) <= 0.025 < min(tails(low + 1e-6))
    assert min(tails(high + 1e-6)) <= 0.025 < min(tails(high - 1e-6))


def test_strata_are_divided_each_on_its_own(inference: ModuleType) -> None:
    pairs = [([1.0, 4.0, 2.5], [0.0, 1.5, 2.0]), ([7.0, 9.0, 8.0], [6.5, 8.5, 5.0])]
    found = []
    for firsts in combinations(range(6), 3):
        for seconds in combinations(range(6), 3):
            means = []
            for (one, other), mine in zip(pairs, (firsts, seconds), strict=True):
                values = [*one, *other]
                rest = [values[i] for i in range(6) if i not in mine]
                means.append(sum(values[i] for i in mine) / 3 - sum(rest) / 3)
            found.append(sum(means) / 2)
    expected = sum(abs(each) >= abs(found[0]) - 1e-12 for each in found) / len(found)
    assert inference.permutation_p(pairs) == expected
    low, high = inference.permutation_interval(pairs)
    assert low < found[0] < high
    moved = [([value - low + 1e-6 for value in one], other) for one, other in pairs]
    one_sided = inference.divisions(moved)[0]
    assert np.mean(one_sided >= one_sided[0] - 1e-12) <= 0.025


def test_what_few_seeds_can_tell(inference: ModuleType) -> None:
    assert inference.detectable(3) == float("inf")  # 2 of 20 divisions at best
    # Student's t, five a side: power .8 at 2.02 deviations (published tables of Cohen's d).
    assert inference.detectable(5) == pytest.approx(2.02, abs=0.15)
    assert inference.detectable(5) > inference.detectable(6)


def test_agreement_of_cells_and_what_permuted_ones_give(inference: ModuleType) -> None:
    one, other = (
        inference.cells_of(read_genotype(name).to_dict()) for name in ("DARTS_V1", "DARTS_V2")
    )
    assert len(one) == 16
    by_hand = [("normal", 2, 0, "sep_conv_3x3"), ("normal", 2, 1, "sep_conv_3x3")]
    assert {*by_hand} <= one & other
    assert inference.agreement([one, one, other]) == (
        (16 + 2 * inference.shared(one, other)[0]) / 3,
        (16 + 2 * inference.shared(one, other)[1]) / 3,
    )
    # Of i sources, two pairs drawn at random share 4 / i.
    draws = np.array(list(inference.agreement_by_chance([one, other], 4000)))
    expected = 2 * sum(4 / sources for sources in (2, 3, 4, 5))
    assert draws[:, 0].mean() == pytest.approx(expected, abs=5 * draws[:, 0].std() / 4000**0.5)
    for cells in (one, other):
        mixed = inference.permuted(cells, np.random.default_rng(3))
        assert sorted(edge[3] for edge in mixed) == sorted(edge[3] for edge in cells)
        assert sorted(edge[:2] for edge in mixed) == sorted(edge[:2] for edge in cells)
        assert mixed != cells


def test_kinship_tells_arms_that_differ(inference: ModuleType) -> None:
    one, other = (
        inference.cells_of(read_genotype(name).to_dict()) for name in ("DARTS_V1", "RLNAS_cifar10")
    )
    alike = 16 - inference.shared(one, other)[1]
    assert inference.kinship([one] * 5, [other] * 5) == (alike, 2 / 252)  # and the arms exchanged
    assert inference.kinship([one, other] * 2, [one, other] * 2)[1] > 0.5


def test_arms_are_compared_in_words(inference: ModuleType) -> None:
    one, other = [8, 8, 7, 6, 8], [0, 1, 0, 1, 2]
    assert inference.compared(one, other).startswith("+6.60 [+")
    assert inference.compared(one, other).endswith("p = 0.0079")
    assert inference.compared([1, 2, 3, 1, 2], [2, 1, 3, 1, 2]).endswith(": not distinguishable")
    assert inference.compared([8, 8, 8], [0, 0, 0]) == "+8.00: too few seeds to tell"


def test_results_stand_between_their_markers(evidence: ModuleType) -> None:
    text = "a\n<!-- results: x -->\nold\n<!-- end: x -->\nb\n<!-- results: y -->\n"
    new = evidence.replaced(text, "x", "new\n")
    assert new == text.replace("old", "new")
    assert evidence.replaced(new, "x", "new\n") == new
    for claim in ("y", "z"):  # an end is missing, or both
        with pytest.raises(ValueError, match=f"no place for the results of {claim}"):
            evidence.replaced(text, claim, "new\n")


def test_the_readme_has_a_place_for_every_claim(evidence: ModuleType) -> None:
    for claim in SCRIPTS.glob("*/claim.py"):
        evidence.replaced(evidence.README.read_text(), claim.parent.name, "")


def a_record(seed: int, upsample: str, ratio: float, skips: int) -> dict[str, Any]:
    course = {"step": [10, 20, 30], "skips_normal": [1, skips, skips]}
    course |= {"entropy_normal": [1.0, 0.9, 0.8], "entropy_reduce": [1.0, 0.9, 0.9]}
    metrics = {"step": [1, 10], "grad_norm_alpha_normal": [0.1, 0.2], "rms_F3": [0.5, None]}
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
        "metrics": metrics,
        "wall_seconds": 60.0,
        "config_hash": f"{seed}{upsample}{ratio}",
        "device": {"name": "a CPU", "threads": 1},
        "git": {"commit": "0123456789", "dirty": True},
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
    assert (
        "12 searches, 0.2 hours in all, on a CPU (1 threads); commits 0123456 (changed)." in table
    )
    assert "| S0 | 0.8 | 3 | +0.67: too few seeds to tell |" in table
    assert "| S0, simmim, all ratios, against chance | 29 skips of 48," in table
    assert "| S0, simmim, ratio 0.2 less 0.8 | +5.67" in table
    pictures = [tmp_path / "skips.png", tmp_path / "signals.png"]
    before = [picture.read_bytes() for picture in pictures]
    assert all(len(picture) > 10_000 for picture in before)
    assert run("report", "table3", "--folder", tmp_path).returncode == 0
    assert (tmp_path / "table.md").read_text() == table
    assert [picture.read_bytes() for picture in pictures] == before


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"seed": 0}, "two records of one seed, [0, 0]"),
        ({"trainer": {"max_steps": 20}}, "records of 2 protocols"),
    ],
)
def test_records_that_are_no_replicates_are_refused(
    tmp_path: Path, others: dict[str, Any], words: str
) -> None:
    one, other = a_record(0, "shuffle", 0.2, 3), a_record(1, "shuffle", 0.2, 4)
    other["seed"] = others.get("seed", 1)
    other["config"] |= others
    other["config"]["data"] = {"root": "/elsewhere"}  # is no other protocol
    one["config"]["data"] = {"root": "/here"}
    (tmp_path / "records.jsonl").write_text(f"{json.dumps(one)}\n{json.dumps(other)}\n")
    done = run("report", "table3", "--folder", tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert not (tmp_path / "table.md").exists()


@pytest.mark.parametrize("scale", ["smoke", "small"])
@pytest.mark.parametrize("claim", ["table3", "table3_factors", "table2", "figure2"])
def test_sweeps_of_a_claim_compose(
    claim: str, scale: str, evidence: ModuleType, tmp_path: Path
) -> None:
    module = import_module(f"{claim}.claim")
    for name in ("null", "product", "searches"):
        (tmp_path / name).mkdir()
    sweeps = dict(module.sweeps(scale, tmp_path))
    assert len(sweeps) == {"table3": 1, "figure2": 1, "table2": 3, "table3_factors": 4}[claim]
    for overrides in sweeps.values():
        words = [f"scale={scale}", f"experiment={claim}", *overrides]
        config = compose([text for axis in split_values(words, ()) for text in axis.texts[-1:]])
        assert config.config["name"] == claim
    for axes in (*module.AXES.values(), *sweeps.values()):
        for key, values in dict(axis.split("=") for axis in axes).items():
            if key == "mask.ratio" and claim == "table3":  # what the paper's column knows
                assert {*map(float, values.split(","))} <= module.PAPER["nearest"].keys()
            if key in getattr(module, "KEYS", ()) and claim == "table2":
                assert {*map(float, values.split(","))} <= module.PAPER[key].keys()
    assert evidence


@pytest.mark.slow
def test_a_claim_is_one_command_that_computes_nothing_twice(
    tmp_path: Path, data_root: Path
) -> None:
    copy = shutil.copytree(SCRIPTS, tmp_path / "experiments")
    command = [sys.executable, str(copy / "evidence.py"), "run", "table2", "mask.patch_size=8"]
    command += ["trainer.max_steps=2", f"data.root={data_root.resolve()}", "--parallel", "2"]
    runs = tmp_path / "runs" / "table2-smoke"

    def records() -> list[dict[str, Any]]:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("mae-nas search -m") == 3
        found = [json.loads(line) for line in (runs / "records.jsonl").read_text().splitlines()]
        return sorted(found, key=lambda record: record["config_hash"])

    first = records()
    targets = [r["config"]["objective"]["target"] for r in first if "genotype" not in r["config"]]
    assert sorted(targets) == ["image", "image", "permuted", "permuted"]
    assert {"DARTS_V2", "random:0"} < {r["config"].get("genotype") for r in first}
    assert all("ratio=0.1,0.3" in str(r["config"]["left_out"]) for r in first)
    assert "| published | 1 | " in (runs / "table.md").read_text()
    assert (runs / "masks.png").stat().st_size > 10_000
    again = [
        sys.executable,
        str(copy / "evidence.py"),
        "repeat",
        "table2",
        "1",
        "--folder",
        str(runs),
    ]
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "the same to the last bit")
    other = {**first[0], "final": {**first[0]["final"], "held_out_loss": 0.5}}
    (tmp_path / "records.jsonl").write_text(json.dumps(other) + "\n")
    done = subprocess.run([*again[:-1], str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("final.held_out_loss: 0.5 in the record, now 0.")
    gone = next((runs / "null").glob("seed*"))
    shutil.rmtree(gone)
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/*/summary.json")}
    assert records() == first  # of two records of one search the first stays
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (gone / "summary.json").exists()


def test_only_runs_at_their_end_are_collected_and_once(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for name, state in (("a", "collapsed"), ("b", "failed"), ("c", None)):
        (sweep / name).mkdir(parents=True)
        if state:
            summary = {"state": state, "config": {"seed": 3}, "seed": 3, "config_hash": "x"}
            (sweep / name / "summary.json").write_text(json.dumps(summary))
    reading = {"step": 5, "held_out_loss": 0.5}
    reading |= {name: {"normal": 1, "reduce": 2} for name in ("skips", "entropy")}
    (sweep / "a" / "genotypes.jsonl").write_text(json.dumps(reading) + "\n")
    header = "step,weight_loss,grad_norm_alpha_normal,rms_F1\n"
    (sweep / "a" / "metrics.csv").write_text(header + "5,0.1,0.25,\n")
    for _ in range(2):
        done = run("collect", "table3", sweep, "--folder", tmp_path / "made")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"table3: 1 ended runs in {sweep}\n"
        [record] = map(json.loads, (tmp_path / "made" / "records.jsonl").read_text().splitlines())
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
        (("repeat", "table3", "1", "--folder", "nowhere"), "table3: records 1 to 0, not 1"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
