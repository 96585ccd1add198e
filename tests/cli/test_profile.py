import json
from pathlib import Path

import pytest

from mae_nas.cli.main import main
from mae_nas.genotype import PUBLISHED

V1 = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('skip_connect', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=range(2, 6))"
)


def test_one_genotype_is_an_object_of_plain_counts(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["profile", "genotype=DARTS_V2", "network=cifar", "format=json", "speed=false"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["params"], found["params_with_aux"]) == (3349342, 3825768)
    assert round(found["macs"] / 1e6, 2) == 528.36
    assert found["network"] == {"width": 36, "depth": 20, "stem": "cifar", "auxiliary": True}
    assert "conventions" not in found


def test_imagenet_has_its_own_images_and_any_width(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["genotype=DARTS_V2", "network=imagenet", "network.width=50", "speed=false"]
    assert main(["profile", *words, "format=json", "conventions=all"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["side"], found["classes"]) == (224, 1000)
    assert round(found["macs"] / 1e6, 1) == 573.5
    assert set(found["conventions"]) == {"thop_without_norms", "thop", "ptflops"}


def test_several_genotypes_are_a_table_however_they_are_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["genotype=DARTS_V2,PDARTS", f"genotype={V1}", "genotype=[GDAS_V1]", "speed=false"]
    assert main(["profile", *words]) == 0
    head, *rows, images = capsys.readouterr().out.splitlines()
    assert head.split()[:1] == ["name"]
    assert [row.split("  ")[0] for row in rows] == ["DARTS_V2", "PDARTS", "text 2", "GDAS_V1"]
    assert " 3.1694 " in rows[2]
    assert images == "images of 32 × 32, channels 3, classes 10"


def test_a_small_network_is_timed_beside_others(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["genotype=DARTS_V1", "network=cifar_small", "network.width=4", "network.depth=3"]
    words += ["side=16", "batch=4", "seconds=0.01", "beside=resnet10t", "channels=1"]
    assert main(["profile", *words, "format=json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    (theirs,) = ours["beside"]
    assert (ours["name"], theirs["name"]) == ("DARTS_V1", "resnet10t")
    assert theirs["network"] is None
    assert theirs["params"] > ours["params"] > 0
    for row in (ours, theirs):
        assert row["kept_bytes_per_image"] > 16 * 16 * 4
        for values in (row["latency_ms"], row["images_per_second"]):
            assert 0 < values["low"] <= values["median"] <= values["high"]


def test_the_widest_network_within_a_budget_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["genotype=DARTS_V2", "network.depth=3", "speed=false", "format=json"]
    words = [*small, "max_macs=100"]
    assert main(["profile", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["macs"] <= 100e6
    assert found["network"]["width"] % 2 == 0
    wider = found["network"]["width"] + 2
    assert main(["profile", *small, f"network.width={wider}"]) == 0
    assert json.loads(capsys.readouterr().out)["macs"] > 100e6


def test_a_text_is_read_quoted_or_from_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "g.txt").write_text(V1 + "\n")
    found = []
    for word in (V1, f'"{V1}"', str(tmp_path / "g.txt"), "DARTS_V1"):
        words = [f"genotype={word}", "network=tiny", "speed=false", "format=json"]
        assert main(["profile", *words]) == 0
        found.append(json.loads(capsys.readouterr().out)["params"])
    assert found == found[:1] * 4


def test_all_published_cells_are_one_list(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["genotype=" + ",".join(PUBLISHED), "network=small", "network.width=2", "side=64"]
    assert main(["profile", *words, "network.depth=3", "speed=false", "format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found] == list(PUBLISHED)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "genotype: needed"),
        (["genotype=DARTS_V9"], "genotype 'DARTS_V9': no such file"),
        (["genotype=DARTS_V2", "network=cifr"], "network=cifr: use cifar, cifar_small"),
        (["genotype=DARTS_V2", "network.width=37"], "width 37: must be even"),
        (["genotype=DARTS_V2", "network.width=x"], "network.width=x: must be a whole number"),
        (["genotype=DARTS_V2", "network.stem=x"], "stem 'x': must be cifar, small or imagenet"),
        (["genotype=DARTS_V2", "side=33"], "side 33 is not a multiple of 4"),
        (["genotype=DARTS_V2", "network.depth=3", "max_macs=0.1"], "max_macs 0.1: at width 2"),
        (["genotype=DARTS_V2", "max_macs=6e8"], "max_macs=6e8: is in millions"),
        (["genotype=DARTS_V2", "speed=maybe"], "speed=maybe: use true or false"),
        (["genotype=DARTS_V2", "beside=resnet19"], "beside: resnet19: timm has no such model"),
        (["genotype=DARTS_V2", "speed=false", "beside=nets"], "beside: nets: timm has no such"),
        (["genotype=DARTS_V2", "speed=false", "batch=x"], "batch=x: must be a whole number"),
        (
            ["genotype=DARTS_V2", "network.width=99999998"],
            "width 99999998: must be even, from 2 to",
        ),
        (["genotype=DARTS_V2", "network.depth=20000"], "depth 20000: must be 3, a cell for each"),
        (["genotype=random:" + "1" * 5000], "genotype: 'random:1111"),
        (["genotype=" + V1.replace("avg_pool_3x3", "sep_conv_9x9")], "genotype: reduce cell: sep_"),
    ],
)
def test_mistakes_are_told_in_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"mae-nas: {line}")


def test_random_cells_are_those_of_their_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "n=3", "seed=4", f"output={tmp_path}/cells", "format=json"]) == 0
    cells = json.loads(capsys.readouterr().out)
    assert main(["sample", "n=2", "seed=5"]) == 0
    fifth, sixth = capsys.readouterr().out.splitlines()
    words = ["speed=false", "format=json", "network.width=4", "network.depth=3"]
    costs = []
    for genotype in (fifth, f"{tmp_path}/cells/5.json", json.dumps(cells[1])):
        assert main(["profile", f"genotype={genotype}", *words]) == 0
        costs.append(json.loads(capsys.readouterr().out)["params"])
    assert len(set(costs)) == 1
    assert fifth != sixth
    assert main(["sample", "space=s2", "n=1"]) == 0
    assert set(capsys.readouterr().out.split("'")[1::2]) == {"skip_connect", "sep_conv_3x3"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["space=s5"], "space=s5: use s0, s1, s2, s3, s4 or my_module.MySpace"),
        (["n=0"], "n=0: must be a whole number"),
        (["seed=-1"], "seed=-1: must be a whole number below a billion"),
        (["space=no_module.Space"], "no_module"),
    ],
)
def test_sample_refuses_in_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
