from pathlib import Path

import pytest

from mae_nas.cli.main import main


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            ["mask.ratoi=0.1,0.2", "decoder=simmim,foo"],
            [
                "decoder=foo: no such option (custom, hierarchical, simmim, unet)",
                "mask.ratoi: no such key; did you mean mask.ratio?",
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
