"""One page about runs: whole, without anything from elsewhere, and with every text escaped."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mae_nas.cli.main import main
from mae_nas.cli.report import PICTURES
from mae_nas.genotype import read_genotype
from mae_nas.runs.records import costs_alone
from mae_nas.spaces import S0
from mae_nas.supernet import SupernetSize

HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m"
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


class Seen(HTMLParser):
    """The elements, with their attributes, and the texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts += [data.strip()] if data.strip() else []

    @property
    def addresses(self) -> list[str]:
        return [a[k] or "" for _, a in self.elements for k in ("src", "href", "srcset") if k in a]


def a_run(folder: Path, **others: object) -> Path:
    (folder / "plots").mkdir(parents=True)
    config = {
        "mask": {"ratio": 0.2},
        "space": {"_target_": "mae_nas.spaces.S0"},
        "supernet": {"width": 4, "depth": 3},
        "seed": 7,
    }
    (folder / "config.json").write_text(
        json.dumps({"format": "mae_nas.config/1", "config": config})
    )
    summary = {
        "state": "finished",
        "skip_chance": {"normal": {"mean": 1.14}, "reduce": {"mean": 1.14}},
        "yardsticks": {"constant": 0.8},
        "overrides": ["mask.ratio=0.2", "name=a b"],
        "wall_seconds": 3725.2,
        "data": {"side": 32, "channels": 3},
        **others,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    reading = {
        **read_genotype("DARTS_V2").to_dict(),
        "step": 40,
        "verdict": "ok",
        "held_out_loss": 0.5,
        "skips": {"normal": 3},
    }
    reading["chance_normal"] = 1.2
    (folder / "genotype.json").write_text(json.dumps(reading))
    for name in PICTURES:
        (folder / "plots" / f"{name}.svg").write_text(SVG)
    return folder


def test_a_page_holds_everything_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    page = Seen((run / "report.html").read_text())
    assert {address.partition(":")[0] for address in page.addresses} == {"data"}
    assert len([tag for tag, _ in page.elements if tag == "img"]) == len(PICTURES)
    assert "script" not in {tag for tag, _ in page.elements}
    facts = dict(zip(page.texts, page.texts[1:], strict=False))
    assert facts["verdict"] == "ok"
    assert facts["normal cell, skips"] == "3 (chance 1.14)"
    assert facts["loss of constant"] == "0.8"
    assert facts["wall time"] == "1:02:05"
    assert facts["mask ratio"] == "0.2"
    assert facts["To repeat it"] == "mae-nas search mask.ratio=0.2 'name=a b'"
    assert "Not there, or not readable:" not in page.texts
    found, published = (page.texts.index(name) for name in ("found", "DARTS_V2"))
    assert page.texts[found + 1 : found + 4] == page.texts[published + 1 : published + 4]
    assert page.texts[published + 3] == "2"  # skips
    assert page.texts[page.texts.index("RLNAS_cifar10") + 1] != page.texts[found + 1]
    assert "NASNet" not in page.texts  # not of S0


def test_texts_from_a_stranger_are_shown_as_text(tmp_path: Path) -> None:
    run = a_run(tmp_path / "<b>run</b>", state=HOSTILE, reason=HOSTILE, overrides=[HOSTILE])
    (run / "summary.json").write_text(
        json.dumps({**json.loads((run / "summary.json").read_text()), "backend": HOSTILE})
    )
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "sweep.csv").write_text(f'job,reason\n0,"{HOSTILE.replace(chr(34), "")}"\n')
    output = tmp_path / "page.html"
    assert main(["report", str(run), str(sweep), f"output={output}"]) == 0
    text = output.read_text()
    assert "<script" not in text
    assert "<b>" not in text
    assert "\x1b" not in text
    shown = html.unescape(re.sub(r"<[^>]*>", "", text))
    assert shown.count("<script>alert(1)</script>") >= 4


def test_what_is_missing_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    (run / "summary.json").write_text('{"state": "fin')
    (run / "plots" / "alpha.svg").unlink()
    assert main(["report", str(run)]) == 0
    page = Seen((run / "report.html").read_text())
    (summary,) = [text for text in page.texts if text.startswith("summary.json: ")]
    assert "JSON" in summary
    assert "alpha.svg: no such picture" in page.texts
    assert "3 (chance 1.2)" in page.texts  # of the reading
    assert "To repeat it" not in page.texts
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "summary.json").write_text("")
    assert main(["report", str(empty)]) == 0
    missing = Seen((empty / "report.html").read_text()).texts
    assert any("is not a run folder (it has no config.json)" in text for text in missing)
    foreign = a_run(tmp_path / "foreign")
    (foreign / "config.json").write_text('{"config": {"seed": 1}}')
    assert main(["report", str(foreign)]) == 0
    texts = Seen((foreign / "report.html").read_text()).texts
    assert any("is not a configuration of mae-nas" in text for text in texts)


@pytest.mark.parametrize(
    "number",
    [10**400, *(pytest.param(n, marks=pytest.mark.slow) for n in (float("nan"), 1e300, "x", [1]))],
)
def test_any_number_of_a_stranger_is_shown(tmp_path: Path, number: object) -> None:
    run = a_run(tmp_path / "run", wall_seconds=number, yardsticks=number, skip_chance=number)
    assert main(["report", str(run)]) == 0
    assert "wall time" in Seen((run / "report.html").read_text()).texts


@pytest.mark.parametrize(
    ("overrides", "command"),
    [
        ([], "mae-nas search"),
        (["seed=1", "resume=auto", "hydra.run.dir=a"], "mae-nas search seed=1"),
    ],
)
def test_the_command_makes_the_search_anew(
    tmp_path: Path, overrides: list[str], command: str
) -> None:
    run = a_run(tmp_path / "run", overrides=overrides)
    assert main(["report", str(run)]) == 0
    texts = Seen((run / "report.html").read_text()).texts
    assert texts[texts.index("To repeat it") + 1] == command


def test_a_command_that_names_foreign_code_is_not_proposed(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", overrides=["seed=1", "relaxation._target_=os.system"])
    assert main(["report", str(run)]) == 0
    texts = Seen((run / "report.html").read_text()).texts
    assert "To repeat it" not in texts
    assert "command: it names code that is not mae_nas's: relaxation._target_=os.system" in texts


def test_a_picture_is_no_link_to_something_else(tmp_path: Path) -> None:
    run, private = a_run(tmp_path / "run"), tmp_path / "private.svg"
    private.write_text("<svg/>")
    picture = run / "plots" / "cells.svg"
    picture.unlink()
    picture.symlink_to(private)
    assert main(["report", str(run)]) == 0
    assert "cells.svg: no such picture" in Seen((run / "report.html").read_text()).texts


@pytest.mark.parametrize(
    ("supernet", "decoder", "is_known"),
    [
        ({"width": 4, "depth": 3}, {"taps": [1]}, True),
        ({"width": 4, "depth": 3, "stem": "small"}, {}, True),
        ({"width": 4, "depth": 5000}, {}, False),
        ({"width": True, "depth": None}, {"taps": 7}, False),
    ],
)
def test_complexity_is_of_the_backbone_that_was_searched(
    tmp_path: Path, supernet: dict[str, object], decoder: dict[str, object], is_known: bool
) -> None:
    run = a_run(tmp_path / "run")
    config = {"space": {"_target_": "mae_nas.spaces.S0"}, "supernet": supernet, "decoder": decoder}
    (run / "config.json").write_text(json.dumps({"format": "mae_nas.config/1", "config": config}))
    assert main(["report", str(run)]) == 0
    texts = Seen((run / "report.html").read_text()).texts
    assert ("found" in texts) == is_known
    if is_known:
        size = SupernetSize(4, 3, "small" if "stem" in supernet else "auto")
        costs = costs_alone("DARTS_V2", S0(), size, 32, 3, 1 if decoder else 3)
        found = texts[texts.index("found") + 1 :][:2]
        assert found == [f"{value:,}" for value in costs.values()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "which run or sweep?"),
        (["nowhere"], "nowhere: not the folder"),
        (["."], ".: not the folder of a run or of a sweep; mae-nas runs . lists runs below it"),
        (["a=b"], "takes"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert not Path("report.html").exists()
    assert error.count("\n") == 1


def test_a_finished_run_and_a_sweep_give_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["data=synthetic", "data.side=16", "space=s2", "supernet.width=2", "supernet.depth=3"]
    quick = ["trainer.max_steps=2", "trainer.preflight=false", "data.batch_size=4"]
    assert main(["search", *small, *quick, "hydra.run.dir=run"]) == 0
    assert main(["report", "run"]) == 0
    page = Seen(Path("run/report.html").read_text())
    assert "Not there, or not readable:" not in page.texts
    assert "mae_nas.spaces.S2" in page.texts
