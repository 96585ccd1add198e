import json
from pathlib import Path

import pytest

from mae_nas.cli.main import main
from mae_nas.runs.folder import RunFolder

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "demo" / "one"
    run.mkdir(parents=True)
    RunFolder(run).write_config({}, [])
    (run / "summary.json").write_text('{"state": "failed", "reason": "the disk is full"}')
    return tmp_path / "runs"


def test_runs_are_listed_with_what_became_of_them(runs: Path, capsys: Captured) -> None:
    assert main(["runs"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == [
        *("run", "state", "step", "skips_normal", "loss", "verdict", "seconds", "chance_normal"),
        "top1",
        *("age", "reason"),
    ]
    assert line.startswith("demo/one  failed")
    assert line.endswith("the disk is full")
    assert main(["runs", str(runs), "format=json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["folder"], run["state"]) == (str(runs / "demo" / "one"), "failed")


def test_a_folder_without_runs_says_so(runs: Path, capsys: Captured) -> None:
    (runs / "empty").mkdir()
    assert main(["runs", str(runs / "empty")]) == 0
    assert capsys.readouterr().out == f"no runs in {runs / 'empty'}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["format=xml"], "format=xml: use text or json"),
        (["fromat=json"], "'fromat=json': runs takes a folder, format=…; did you mean format?"),
        (["runs", "more"], "more: runs takes one folder"),
    ],
)
def test_mistakes_are_a_line(
    runs: Path, capsys: Captured, arguments: list[str], message: str
) -> None:
    del runs
    assert main(["runs", *arguments]) == 2
    assert capsys.readouterr().err == f"mae-nas: {message}\n"
