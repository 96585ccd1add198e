import io
import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mae_nas import __version__
from mae_nas.cli.drive import Start
from mae_nas.cli.main import main
from mae_nas.runs.folder import RunFolder
from mae_nas.stopping import Stopper

Captured = pytest.CaptureFixture[str]
Search = Callable[[dict[str, Any], list[str], RunFolder, Path | None, Stopper], int]
SearchIs = Callable[[Search], None]


@pytest.fixture
def search_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SearchIs:
    """Put a search of the test's own behind the front door, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def replace(search: Search) -> None:
        module = types.ModuleType("mae_nas.cli.drive")
        module.Start = Start  # type: ignore[attr-defined]
        module.drive = lambda _prepare, start, stopper: search(  # type: ignore[attr-defined]
            start.config, start.overrides, start.folder, start.checkpoint, stopper
        )
        monkeypatch.setitem(sys.modules, "mae_nas.cli.drive", module)

    return replace


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["search", "--help"],
        ["search", "--cfg", "job"],
        ["search", "mask.ratoi=1", "decoder=unett"],
        ["-sc", "query=bash"],
        ["draw", "--help"],
        ["runs", "--help"],
        ["search", "-m", "mask.ratoi=1,2"],
        ["serch"],
    ],
)
def test_quick_answers_do_not_import_torch(arguments: list[str]) -> None:
    code = f"""
import sys
from mae_nas.cli.main import main
main({arguments!r})
heavy = {{"torch", "lightning", "torchvision", "matplotlib", "wandb"}} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""
    done = run(code, COMP_LINE="mae-nas search deco")
    assert done.returncode == 0, done.stderr


def test_help_lists_groups_options_and_common_keys(capsys: Captured) -> None:
    assert main(["search", "--help"]) == 0
    text = capsys.readouterr().out
    for expected in (
        "decoder     custom, hierarchical*, simmim, unet",
        "mask.ratio=0.5",
        "decoder.taps=[1, 2, 3]",
        "resume=null",
        "trainer.max_epochs=auto",
        "hydra.run.dir=runs/${name}/",
    ):
        assert expected in text


def test_version_and_overview(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mae-nas {__version__}\n"
    assert main([]) == 0
    assert "mae-nas search" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["serch"], "serch: no such command; did you mean search?"),
        (["xyz"], "xyz: no such command; commands are search, train, "),
        (["search", "--cfgg", "job"], "unrecognized arguments: --cfgg"),
        (["search", "mask.ratoi=1"], "mask.ratoi: no such key; did you mean mask.ratio?"),
        (["-sc", "install=tcsh"], "-sc install=tcsh: write -sc install=bash|fish|zsh"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], line: str, capsys: Captured
) -> None:
    assert main(arguments) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"mae-nas: {line}")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    program = "from mae_nas.cli.main import main; import sys; sys.exit(main(['search', '--help']))"
    line = f'"{sys.executable}" -c "{program}" | head -n 0'
    done = subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "mae-nas search"),
        (["search", "+mask.ratio=1"], 2, "write mask.ratio=?\n"),
        (["search", "seed=-1"], 2, "loading torch ?\n"),
    ],
)
def test_terminals_without_unicode_get_an_answer(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    written = [io.BytesIO(), io.BytesIO()]
    for name, file in zip(("stdout", "stderr"), written, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(file, "latin-1", write_through=True))
    assert main(arguments) == code
    out, err = (file.getvalue().decode("latin-1") for file in written)
    assert said in out + err
    assert "codec" not in err


def test_cfg_job_prints_the_composed_configuration(capsys: Captured) -> None:
    assert main(["search", "mask.ratio=0.6", "--cfg", "job", "seed=3"]) == 0
    text = capsys.readouterr().out
    assert "ratio: 0.6" in text
    assert "seed: 3" in text
    assert "${" not in text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mae-nas search deco", "decoder. decoder="),
        ("mae-nas search decoder=si", "decoder=simmim"),
        ("mae-nas search decoder=unet mask.ra", "mask.ratio="),
        ("mae-nas se", "search"),
        ("mae-nas search decoder=unett mask.ra", ""),
    ],
)
def test_completion_answers(
    line: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == expected.split()


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_completion_installs(shell: str, capsys: Captured) -> None:
    assert main(["-sc", f"install={shell}"]) == 0
    assert f"-sc query={shell}" in capsys.readouterr().out


def test_search_stores_its_configuration_before_it_runs(
    search_is: SearchIs, capsys: Captured
) -> None:
    seen = {}

    def search(
        config: dict[str, Any],
        overrides: list[str],
        folder: RunFolder,
        checkpoint: Path | None,
        _stopper: Stopper,
    ) -> int:
        stored = json.loads(folder.config.read_text())
        seen.update(stored=stored, config=config, overrides=overrides, checkpoint=checkpoint)
        assert not RunFolder(folder.path).try_lock()
        return 3

    search_is(search)
    assert main(["search", "seed=5", "hydra.run.dir=out"]) == 3
    assert seen["stored"]["config"] == seen["config"]
    assert seen["stored"]["overrides"] == seen["overrides"] == ["seed=5", "hydra.run.dir=out"]
    assert seen["config"]["seed"] == 5
    assert seen["checkpoint"] is None
    assert capsys.readouterr().out.startswith(f"mae-nas {__version__}: search 'search'")


def test_search_refused_before_training_leaves_nothing(
    search_is: SearchIs, tmp_path: Path, capsys: Captured
) -> None:
    def search(*_: object) -> int:
        raise ValueError("data: no readable image in /x")

    search_is(search)
    assert main(["search"]) == 2
    assert capsys.readouterr().err == "mae-nas: data: no readable image in /x\n"
    assert list(tmp_path.iterdir()) == []


def test_search_with_wrong_values_makes_no_folder(search_is: SearchIs, tmp_path: Path) -> None:
    search_is(lambda *_: 0)
    assert main(["search", "mask.ratio=2.0"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_search_failing_with_results_keeps_them(search_is: SearchIs, tmp_path: Path) -> None:
    def search(_config: object, _overrides: object, folder: RunFolder, *_: object) -> int:
        folder.genotype.write_text("{}")
        raise OSError(28, "No space left on device", str(folder.metrics))

    search_is(search)
    assert main(["search", "hydra.run.dir=out"]) == 1
    assert (tmp_path / "out" / "genotype.json").exists()


@pytest.mark.parametrize(("state", "code"), [("finished", 0), ("collapsed", 3)])
def test_search_that_has_ended_is_not_trained_again(
    search_is: SearchIs, tmp_path: Path, capsys: Captured, state: str, code: int
) -> None:
    def search(*_: object) -> int:
        trained.append(1)
        return 0

    trained: list[int] = []
    search_is(search)
    assert main(["search", "hydra.run.dir=out"]) == 0
    (tmp_path / "out" / "summary.json").write_text(json.dumps({"state": state}))
    assert main(["search", "hydra.run.dir=out", "resume=auto"]) == code
    assert len(trained) == 1
    assert f"out is {state}: nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_a_rank_of_something_else_does_not_silence_a_search_of_one_device(
    place: str, search_is: SearchIs, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    search_is(lambda *_: 0)
    monkeypatch.setenv(place, "3")
    assert main(["search", "hydra.run.dir=out"]) == 0
    assert "run folder: out" in capsys.readouterr().out
    assert main(["search", "trainer.devices=2"]) == 2  # a follower, which no one has told its run
    assert "several nodes need hydra.run.dir=FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "code"), [("INT", 130), ("TERM", 75), ("USR1", 75), ("USR2", 75)])
def test_a_signal_before_the_first_step_leaves_nothing(
    search_is: SearchIs, tmp_path: Path, capsys: Captured, name: str, code: int
) -> None:
    number = signal.Signals[f"SIG{name}"]
    before = signal.getsignal(number)

    def search(*_: object) -> int:
        os.kill(os.getpid(), number)
        return 0  # not reached

    search_is(search)
    assert main(["search"]) == code
    assert capsys.readouterr().err == "mae-nas: stopped at once; nothing is left of it\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is before


def test_search_of_a_users_class_continues_only_when_it_is_named_again(
    search_is: SearchIs, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "mine_again.py").write_text(
        "from mae_nas.decoders import HierarchicalDecoder\n"
        "class Mine(HierarchicalDecoder):\n"
        "    def __init__(self, features, x: int) -> None: super().__init__(features, 1)\n"
    )
    search_is(lambda *_: 0)
    named = ["decoder=custom", "decoder._target_=mine_again.Mine", "decoder.x=1"]
    assert main(["search", *named, "hydra.run.dir=out"]) == 0
    capsys.readouterr()
    assert main(["search", "resume=out"]) == 2
    assert "mine_again.Mine, which is not ours" in capsys.readouterr().err
    assert main(["search", "resume=out", "decoder._target_=mine_again.Mine"]) == 0
    assert main(["search", "resume=out", *named]) == 0
    assert main(["search", "resume=auto", "hydra.run.dir=out", *named]) == 0
