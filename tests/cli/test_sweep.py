from pathlib import Path

import pytest

from mae_nas.cli.main import main
from mae_nas.cli.sweep import judge_names, split_values


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            ["mask.ratoi=0.1,0.2", "decoder=simmim,foo"],
            [
                "mask.ratoi: no such key; did you mean mask.ratio?",
                "decoder=foo: no such option (custom, hierarchical, simmim, unet)",
            ],
        ),
        (
            ["seed=0,1", "resume=null"],
            ["resume: the jobs of a sweep always go on (resume=auto); leave it out"],
        ),
        (
            ["seed=0,1", "hydra.run.dir=x"],
            ["hydra.run.dir: jobs lie in hydra.sweep.dir, named by their values"],
        ),
        (
            ["seed=interval(0,1)"],
            ["seed=interval(0,1): a sweep needs values that can be listed: a,b or range(0,5)"],
        ),
        (
            ["--cfg", "job"],
            ["--cfg: shows one configuration; leave out -m and choose one value each"],
        ),
    ],
)
def test_a_wrong_sweep_starts_nothing(
    overrides: list[str],
    lines: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["search", "-m", *overrides]) == 2
    assert capsys.readouterr().err == "".join(f"mae-nas: {line}\n" for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_wrong_settings_of_the_launcher_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["search", "-m", "seed=0,1", "hydra.launcher.parallel=0"]) == 2
    message = "hydra.launcher.parallel: 0 is not a number of jobs, or auto"
    assert capsys.readouterr().err == f"mae-nas: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_only_m_starts_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "seed=0,1"]) == 2
    assert capsys.readouterr().err == (
        "mae-nas: seed=0,1: several values are a sweep, mae-nas search -m …; "
        "a list is written seed=[a,b], text with commas 'seed=\"a,b\"'\n"
    )


def test_a_value_that_some_points_take_is_left_to_the_others_jobs() -> None:
    grid = split_values(["decoder=unet,hierarchical", "space=s0,s1", "decoder.upsample=nearest,x"])
    with pytest.raises(ValueError, match=r"^decoder\.upsample: no such key") as refused:
        judge_names(grid, None)  # no point with unet can be
    assert len(str(refused.value).splitlines()) == 1
    assert judge_names(split_values(["decoder=unet,hierarchical", "seed=0,1"]), None) == frozenset()


def test_keys_that_only_a_class_knows_are_added() -> None:
    mine = ["decoder=custom", "decoder._target_=mine.Mine", "decoder.size=1,2"]
    assert judge_names(split_values(mine), None) == {"decoder.size"}
