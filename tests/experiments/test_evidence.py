"""Statistics against enumerations, and records to tables by the script itself."""

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from importlib import import_module
from io import BytesIO
from itertools import combinations
from math import comb
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mae_nas.cli.compose import compose
from mae_nas.cli.jobs import split_values
from mae_nas.genotype import PUBLISHED, Genotype, read_genotype
from mae_nas.search.collapse import chance_of_skips
from mae_nas.spaces import S0, S1, S2, S3
from mae_nas.spaces.derivation import random_genotype

Run = Callable[..., subprocess.CompletedProcess[str]]
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


@pytest.fixture
def run(evidence: ModuleType, capsys: pytest.CaptureFixture[str]) -> Run:
    """The script, in this process: its exit code, and what it printed."""

    def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
        given = [str(argument) for argument in arguments]
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            evidence.main(given)
        code, said = ended.value.code or 0, capsys.readouterr()
        if isinstance(code, str):  # Python prints it, and exits with 1
            return subprocess.CompletedProcess(given, 1, said.out, f"{said.err}{code}\n")
        return subprocess.CompletedProcess(given, code, said.out, said.err)

    return _run


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
    assert inference.told(7.0**-40) == "p < 0.0001"


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
    expected = [(16 + 2 * count) / 3 for count in inference.shared(one, other)]
    assert inference.agreement([one, one, other]) == pytest.approx(expected)
    operations = [[edge[3] for edge in cells if edge[0] == "normal"] for cells in (one, other)]
    assert operations[0].count("sep_conv_3x3") == 5  # and three skips; the other: five, two, one
    assert inference.shared(one, other)[2] - 7 <= 8
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
    # As high with the arms exchanged: 2 of 252 divisions.
    expected = [(16 - count, 2 / 252) for count in inference.shared(one, other)]
    assert inference.kinship([one] * 5, [other] * 5) == expected
    assert all(p > 0.5 for _, p in inference.kinship([one, other] * 2, [one, other] * 2))


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


def a_record(
    seed: int, skips: int, loss: float = 0.5, pixels: str = "", **config: object
) -> dict[str, Any]:
    """A search, or a training of `genotype`, whose normal cell has so many skips; made up."""
    place: dict[str, Any] = {"upsample": "nearest", "taps": [1, 2, 3], "kernel": "auto"}
    place |= {"ratio": 0.2, "patch_size": 8, "target": "image", "mode": "dense", "space": "S0"}
    place |= config
    given = place.get("genotype")
    genotype = read_genotype("RLNAS_cifar10" if given is None else given).to_dict()
    edges: Any = genotype["normal"]
    if given is None:
        for edge in edges["edges"][:skips]:
            edge["primitive"] = "skip_connect"
    course: dict[str, list[Any]] = {"step": [10, 20, 30], "skips_normal": [1, skips, skips]}
    course |= {f"entropy_{kind}": [1.0, 0.9, 0.8] for kind in ("normal", "reduce")}
    course |= {"held_out_loss": [0.9, 0.7, loss], "verdict": ["ok", "ok", "warning"]}
    metrics = {"step": [1, 30], "seconds": [1.0, 20.0], "grad_norm_alpha_normal": [0.1, 0.2]}
    relaxation = "DARTS" if given is None else "Fixed"
    return {
        "config": {
            "space": {"_target_": f"mae_nas.spaces.{place['space']}"},
            "relaxation": {"_target_": f"mae_nas.relaxations.{relaxation}"},
            "decoder": {key: place[key] for key in ("upsample", "taps", "kernel")},
            "mask": {key: place[key] for key in ("ratio", "patch_size", "mode")},
            "objective": {"target": place["target"]},
            **({} if given is None else {"genotype": given}),
            **place.get("others", {}),
            "seed": seed,
        },
        "seed": seed,
        "genotype": genotype,
        "skip_counts": {"normal": skips},
        "entropy": {"normal": 0.9},
        "mask_ratio": {"effective": max(place["ratio"], (place["patch_size"] / 32) ** 2)},
        "yardsticks": {"visible_mean": 0.7},
        "reconstructions": pixels,
        "final": {"held_out_loss": loss, "step": 30},
        "course": course,
        "metrics": {**metrics, "rms_F3": [0.5, 0.6], "rms_F1": [None, None]},
        "wall_seconds": 60.0,
        "config_hash": f"{seed}{sorted(map(str, place.items()))}",
        "device": {"name": "a CPU", "threads": 1},
        "git": {"commit": "0123456789", "dirty": True},
    }


def records_of(claim: str) -> list[dict[str, Any]]:
    """Three seeds of everything that a claim asks for, few of its levels."""
    arms: list[dict[str, Any]] = {
        "table3": [
            {"space": space, "upsample": upsample, "ratio": ratio}
            for space in ("S0", "S2")
            for upsample in ("nearest", "shuffle")
            for ratio in (0.2, 0.8)
        ],
        "table3_factors": [
            *(
                {"upsample": upsample, "taps": taps, "kernel": kernel}
                for upsample in ("nearest", "shuffle")
                for taps in ([1, 2, 3], [3])
                for kernel in (1, 3)
            ),
            {"target": "permuted"},
            {"target": "permuted", "upsample": "shuffle", "taps": [3], "kernel": 1},
            {"mode": "sparse"},
        ],
        "table2": [
            *({"ratio": ratio, "patch_size": size} for ratio in (0.1, 0.5) for size in (8, 16)),
            {"target": "permuted", "ratio": 0.5},
        ],
        "figure2": [{"upsample": "nearest"}, {"upsample": "shuffle"}],
    }[claim]
    records = []
    for place in arms:
        skips = 6 if place.get("upsample") == "shuffle" else 1
        records += [
            a_record(seed, skips + seed % 2, 0.5 + seed / 100, some_pixels(), **place)
            for seed in range(3)
        ]
    if claim != "figure2":
        cells = {json.dumps(r["genotype"]) for r in records} | {"DARTS_V2", "PDARTS"}
        records += [a_record(0, 2, 0.6, genotype=cell) for cell in sorted(cells)]
    return records


def some_pixels(shift: float = 0.0) -> str:
    buffer = BytesIO()
    images = np.random.default_rng(1).integers(0, 255, (2, 3, 16, 16), np.uint8)
    hidden = np.zeros((2, 2, 2), bool)
    hidden[:, 0] = True
    np.savez(buffer, images=images + np.uint8(shift), predictions=images, hidden=hidden)
    return base64.b64encode(buffer.getvalue()).decode()


PICTURES = {
    "table3": ("skips", "signals"),
    "table3_factors": ("arms", "operations", "sparse"),
    "table2": ("masks",),
    "figure2": ("ratio_0.2",),
}


@pytest.mark.slow
@pytest.mark.parametrize("claim", PICTURES)
def test_tables_and_pictures_are_a_function_of_the_records(
    claim: str, tmp_path: Path, run: Run
) -> None:
    def write(records: list[dict[str, Any]]) -> dict[str, bytes]:
        (tmp_path / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        for made in (*tmp_path.glob("*.png"), *tmp_path.glob("*.md")):
            made.unlink()
        done = run("report", claim, "--folder", tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.suffix in (".md", ".png")}

    records = records_of(claim)
    whole = write(records)
    assert whole.keys() == {"table.md", *(f"{name}.png" for name in PICTURES[claim])}
    assert all(len(whole[f"{name}.png"]) > 10_000 for name in PICTURES[claim])
    assert write(records[::-1]) == whole
    for some in (records[:1], records[::3], records[: len(records) // 2], records[-1:]):
        assert "table.md" in write(some)  # a claim may be half collected


def test_table3_says_what_its_records_hold(evidence: ModuleType) -> None:
    module = import_module("table3.claim")
    text = module.tables(records_of("table3"))
    [row] = [line for line in text.splitlines() if line.startswith("| S0 | simmim | 0.2 ")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[3:6] == ["6 7 6", "6.33 ± 0.58", "1.14"]
    assert cells[-3:] == ["20 20 20", "30 30 30", "8"]
    assert "24 searches and 6 trainings of given cells, " in text
    assert "hours in all, on a CPU (1 threads); commits 0123456 (changed)." in text
    assert "| S0 | 0.2 | 3 and 3 | +5.00: too few seeds to tell |" in text
    assert "| S0, simmim, mean over ratios, by seed | 6.00 7.00 6.00 (chance 1.14) |" in text
    assert "| S0, simmim, ratio 0.2 | 2 of 3 searches | 0.600 ± 0.000 |" in text
    assert evidence


def test_a_main_effect_needs_all_combinations_of_a_seed(evidence: ModuleType) -> None:
    module = import_module("table3_factors.claim")
    records = [
        a_record(seed, 5 if len(taps) == 1 else 1, upsample=upsample, taps=taps, kernel=kernel)
        for seed in range(5)
        for upsample in ("nearest", "shuffle")
        for taps in ([1, 2, 3], [3])
        for kernel in (1, 3)
    ]
    rows = {row[0]: row for row in module.main_effects(module.arms_of(records))}
    assert (
        rows["upsampling"][-1] == "+0.00 (no spread in either arm), p = 1.0000: not distinguishable"
    )
    assert rows["taps"][1:4] == ("3 less 1 2 3", 0.2, 5)
    assert rows["taps"][-1] == "+4.00 (no spread in either arm), p = 0.0079"
    half = [r for r in records if r["config"]["decoder"]["taps"] != [3] or r["seed"] < 2]
    assert {row[3] for row in module.main_effects(module.arms_of(half))} == {2}
    gone = [r for r in records if r["config"]["decoder"]["upsample"] == "nearest"]
    assert not list(module.main_effects(module.arms_of(gone)))
    assert evidence


def test_ratios_that_hide_as_much_are_counted_once(evidence: ModuleType) -> None:
    module = import_module("table2.claim")
    records = [
        a_record(0, 1, ratio=ratio, patch_size=size) for ratio in (0.1, 0.2) for size in (8, 16)
    ]
    kept = [
        (r["config"]["mask"]["ratio"], r["config"]["mask"]["patch_size"])
        for r in module.searches_of(records)
    ]
    assert sorted(kept) == [(0.1, 8), (0.2, 8), (0.2, 16)]
    assert evidence


def test_a_cell_found_twice_counts_once_alone(evidence: ModuleType) -> None:
    searches = [a_record(seed, seed // 2) for seed in range(4)]  # two different cells
    alone = [
        a_record(0, 0, loss, genotype=json.dumps(searches[place]["genotype"]))
        for place, loss in ((0, 0.25), (2, 0.75))
    ]
    assert evidence.losses_alone([*searches, *alone], searches) == [0.25, 0.75]
    assert evidence.losses_alone([*searches, *alone[:1]], searches) == [0.25]


def test_decoders_with_other_images_are_not_drawn_together(
    evidence: ModuleType, tmp_path: Path
) -> None:
    module = import_module("figure2.claim")
    pixels = (("nearest", some_pixels()), ("shuffle", some_pixels(1)))
    records = [a_record(0, 1, pixels=each, upsample=upsample) for upsample, each in pixels]
    with pytest.raises(ValueError, match="decoders with other images or masks"):
        module.draw(records, tmp_path)
    assert evidence


@pytest.mark.parametrize(
    ("seed", "others", "words"),
    [
        (0, {}, "two records of one seed, [0, 0]"),
        (1, {"trainer": {"max_steps": 20}}, "records of 2 protocols"),
    ],
)
def test_records_that_are_no_replicates_are_refused(
    tmp_path: Path, run: Run, seed: int, others: dict[str, Any], words: str
) -> None:
    one, other = a_record(0, 3), a_record(seed, 4, others=others)
    other["config"]["data"] = {"root": "/elsewhere"}  # is no other protocol
    one["config"]["data"] = {"root": "/here"}
    (tmp_path / "records.jsonl").write_text(f"{json.dumps(one)}\n{json.dumps(other)}\n")
    done = run("report", "table3", "--folder", tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert not (tmp_path / "table.md").exists()


@pytest.mark.parametrize("claim", ["table3", "table3_factors", "table2"])
def test_arms_and_cells_alone_are_of_one_protocol(claim: str, evidence: ModuleType) -> None:
    module = import_module(f"{claim}.claim")
    records = records_of(claim)
    assert module.tables(records)
    for place in (0, -1):  # a search, a cell alone
        records[place]["config"]["supernet"] = {"width": 99}
        with pytest.raises(ValueError, match="records of 2 protocols"):
            module.tables(records)
        del records[place]["config"]["supernet"]
    assert evidence


@pytest.mark.parametrize("scale", ["smoke", "small"])
@pytest.mark.parametrize("claim", ["table3", "table3_factors", "table2", "figure2"])
def test_sweeps_of_a_claim_compose(
    claim: str, scale: str, evidence: ModuleType, tmp_path: Path
) -> None:
    module = import_module(f"{claim}.claim")
    for name in ("null", "product", "searches"):
        (tmp_path / name).mkdir()
    sweeps = {sweep.name: sweep.overrides for sweep in module.sweeps(scale, tmp_path)}
    assert len(sweeps) == {"table3": 2, "figure2": 1, "table2": 3, "table3_factors": 4}[claim]
    for overrides in sweeps.values():
        words = [f"scale={scale}", f"experiment={claim}", *overrides]
        config = compose([text for axis in split_values(words, ()) for text in axis.texts[-1:]])
        assert config.config["name"] == claim
    for axes in (*module.AXES.values(), *sweeps.values()):
        for key, values in dict(axis.split("=") for axis in axes).items():
            if key == "mask.ratio" and claim == "table3":  # what the paper's column knows
                assert {*map(float, values.split(","))} <= module.PAPER["hierarchical"].keys()
            if key in getattr(module, "KEYS", ()) and claim == "table2":
                assert {*map(float, values.split(","))} <= module.PAPER[key].keys()
    assert evidence


@pytest.mark.parametrize("scale", ["smoke", "small", "full"])
@pytest.mark.parametrize("claim", ["table1_cifar10", "table1_imagenet"])
def test_table_1_searches_and_trains_what_it_lists(
    claim: str, scale: str, evidence: ModuleType, tmp_path: Path
) -> None:
    module = import_module(f"{claim}.claim")
    (tmp_path / "searches").mkdir()
    searches, networks = module.sweeps(scale, tmp_path)
    for sweep in (searches, networks):
        command, _, *words = sweep.words(claim, scale)
        one = [text for axis in split_values(words, ()) for text in axis.texts[-1:]]
        assert compose(one, command=command).config["seed"] in (0, 4)
    listed = module.AXES["full"][1].removeprefix("genotype=").split(",")
    known = [name for name in listed if not name.startswith("random:")]
    assert set(known) <= PUBLISHED.keys()
    rows = {row.cell for row in module.HALF.rows}
    assert rows & PUBLISHED.keys() <= set(known)
    assert evidence


@pytest.mark.slow
def test_table_1_sets_what_was_trained_beside_what_is_printed(evidence: ModuleType) -> None:
    module = import_module("table1_cifar10.claim")
    found = random_genotype(S0(), 7)
    search = {"config": {}, "genotype": found.to_dict(), "seed": 3, "wall_seconds": 1.0}
    search |= {"device": {"name": "a computer", "threads": 1}, "git": {"commit": "abc"}}

    def training(given: str, genotype: Genotype, seed: int, top1: float) -> dict[str, Any]:
        config = {"recipe": {}, "genotype": given, "trainer": {"max_steps": -1}, "seed": seed}
        config |= {"network": {"width": 16, "depth": 5}, "data": {"batch_size": 32}}
        course = {"epoch": [1.0, 2.0], "top1": [0.3, top1], "loss": [2.0, 1.0]}
        costs = {"params": 1_234_000, "macs": 5_600_000}
        own = {"config": config, "genotype": genotype.to_dict(), "seed": seed, "epochs": 2}
        return {**search, **own, "test_top1": top1, "costs": costs, "course": course}

    text = json.dumps(found.to_dict())
    records = [search, *(training(text, found, seed, 0.8 + seed / 100) for seed in range(2))]
    records += [training("DARTS_V2", PUBLISHED["DARTS_V2"], seed, 0.7) for seed in range(2)]
    records += [training("random:0", random_genotype(S0(), 0), 0, 0.6)]
    said = module.tables(records)
    assert "1 search and 5 trainings of given cells" in said
    row = "| found here, seed 3 | 2 | 1.234 | 5.6 | 80.00 81.00 | 80.50 ± 0.71 | +20.50, one cell |"
    assert row in said
    assert "| 97.8 | 0.2 | found here | – | – | 80.50 ± 0.71 (2 seeds) |" in said
    assert "| GDAS_V1 | 3.369 | 519.4 | not trained |" in said
    assert "| DARTS | yes | 3.3 | 528 | 97.0 | 0.4 | DARTS_V2 | 3.349 | 528.4 | 70.00 ±" in said
    assert "16 channels, 5 cells, 2 epochs of batches of 32; last epoch" in said
    assert "| MAE-NAS | 97.8 | 80.50 ± 0.71 (2 seeds) |" in module.results(records)
    assert "| GDAS | 97.07 | not trained |" in module.results(records)
    # Seeds of a cell are alike: cells are compared by their means.
    more = [random_genotype(S0(), seed) for seed in range(8)]
    records += [
        training(json.dumps(cell.to_dict()), cell, seed, 0.7 + at / 100 + seed / 1000)
        for at, cell in enumerate(more[1:4])
        for seed in range(2)
    ]
    records += [
        training(f"random:{at}", more[at], seed, 0.6 + at / 100)
        for at in range(4, 8)
        for seed in range(2)
    ]
    said = module.tables(records)
    assert "| random cells, 5 cells | – | – | – | 60.00 64.00 65.00 66.00 67.00 | 64.40 ±" in said
    four = "| found here, 4 cells | – | – | – | 80.50 70.05 71.05 72.05 | 73.41 ± 4.80 | +9.01 ["
    assert four in said
    assert "73.41 ± 4.80 (4 cells) |" in module.results(records)
    records[1]["config"]["recipe"] = {"ema": 0.9}
    with pytest.raises(ValueError, match="records of 2 protocols"):
        module.tables(records)
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
    assert "| published cells | 1 | " in (runs / "table.md").read_text()
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
    gone, *others = (runs / "null").glob("seed*")
    lines = (runs / "records.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if f"null/{gone.name}" not in line]
    assert len(kept) == len(lines) - 1
    (runs / "records.jsonl").write_text("".join(kept))
    for path in (gone, *others, runs / "alone"):  # where a record is, no run is needed
        shutil.rmtree(path)
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/*/summary.json")}
    again = records()
    assert [r["config"] for r in again] == [r["config"] for r in first]
    assert sum(mine != old for mine, old in zip(again, first, strict=True)) == 1
    assert {path.parent.parent.name for path in runs.glob("*/*/checkpoints")} == {
        "searches",
        "null",
    }  # of two records of one search the first stays
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (gone / "summary.json").exists()


def a_sweep(folder: Path, **runs: str) -> Path:
    """Run folders by name, each in a state."""
    for seed, (name, state) in enumerate(runs.items()):
        (folder / name).mkdir(parents=True)
        record = a_record(seed, 1)
        record["config"]["data"] = {
            "root": "/home/me/images",
            "cache": "/home/me/cache",
            "side": 32,
        }
        record["data"] = {"cache": "/home/me/cache/1", "side": 32}
        (folder / name / "summary.json").write_text(json.dumps({**record, "state": state}))
        reading = {"step": 5, "held_out_loss": 0.5, "verdict": "ok"}
        reading |= {kind: {"normal": 1, "reduce": 2} for kind in ("skips", "entropy")}
        (folder / name / "genotypes.jsonl").write_text(json.dumps(reading) + "\n")
        header = "step,weight_loss,grad_norm_alpha_normal,rms_F1\n"
        (folder / name / "metrics.csv").write_text(header + "5,0.1,0.25,\n")
    return folder


def test_only_runs_at_their_end_are_collected_and_once(tmp_path: Path, run: Run) -> None:
    sweep = a_sweep(tmp_path / "sweep", a="collapsed", b="failed")
    (sweep / "c").mkdir()
    for _ in range(2):
        done = run("collect", "table3", sweep, "--folder", tmp_path / "made")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"table3: 1 ended runs in {sweep}\n"
        [line] = (tmp_path / "made" / "records.jsonl").read_text().splitlines()
        record = json.loads(line)
        assert record["course"]["skips_reduce"] == [2]
        assert record["metrics"] == {
            "step": [5.0],
            "grad_norm_alpha_normal": [0.25],
            "rms_F1": [None],
        }
        assert "/home" not in line
        assert record["config"]["data"] == record["data"] == {"side": 32}


def test_records_of_another_protocol_leave_the_file_as_it_is(tmp_path: Path, run: Run) -> None:
    sweep, made = a_sweep(tmp_path / "sweep", a="finished", b="finished"), tmp_path / "made"
    assert run("collect", "table3", sweep, "--folder", made).returncode == 0
    before = (made / "records.jsonl").read_text()
    summary = sweep / "b" / "summary.json"
    record = json.loads(summary.read_text())
    record["config"] |= {"trainer": {"max_steps": 9}}
    summary.write_text(json.dumps({**record, "config_hash": "another"}))
    done = run("collect", "table3", sweep, "--folder", made)
    assert done.returncode == 1
    assert "two records of one seed" in done.stderr
    assert (made / "records.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("report", "table9"), "table9: no such claim; there are "),
        (("collect", "table3", "nowhere"), "nowhere"),
        (("report", "table3", "--folder", "nowhere"), "no records yet; make table3 makes some"),
        (("repeat", "table3", "1", "--folder", "nowhere"), "table3: records 1 to 0, not 1"),
    ],
)
def test_mistakes_are_one_line(run: Run, arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
