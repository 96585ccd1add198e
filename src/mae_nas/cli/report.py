"""`mae-nas report`: runs and sweeps as one page that needs nothing else to be read."""

import base64
import csv
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import cast, get_args

from jinja2 import Environment

from mae_nas.checks import first_line
from mae_nas.cli.arguments import read_arguments
from mae_nas.cli.reported import (
    COSTS,
    PAPER,
    PICTURES,
    PRETRAIN_PICTURES,
    PRETRAINED,
    SEARCHED,
    TESTED,
    TRAIN_COSTS,
    TRAIN_PICTURES,
    TRAINED,
)
from mae_nas.genotype import PUBLISHED, read_genotype
from mae_nas.keys import ABSENT, find, leaves
from mae_nas.runs.files import read_json, write_text
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.listing import MEASURES, command_of, look, printable

USAGE = """\
mae-nas report RUN|SWEEP... [output=FILE]

One HTML file about runs, or sweeps with their table: what was searched, verdict beside chance,
cells, alpha, losses beside yardsticks, reconstructions, costs, environment and the command to
repeat it. It holds its pictures; it needs no network and no JavaScript.
  output   default: report.html in the first folder
"""

SWEEP_PICTURE = "sweep"
MOST_BYTES, MOST_SECONDS = 2**25, 1e9
WIDEST, DEEPEST = 4096, 64
OWN = ("mae_nas.", "torch.optim.")  # classes that a command may name
_MEASURED = frozenset(name for names in MEASURES.values() for name in names)
SPACES = ("S0", "S1", "S2", "S3", "S4")


@dataclass(frozen=True)
class Section:
    """A run or a sweep, in texts and pictures; what is not there is said in `missing`."""

    title: str
    facts: Mapping[str, Mapping[str, str]]  # by heading
    head: Sequence[str]  # of a table
    rows: Sequence[Sequence[str]]
    pictures: Sequence[tuple[str, str]]  # caption, and the picture itself as an address
    notes: Sequence[str]
    missing: Sequence[str]
    command: str = ""


def report(arguments: Sequence[str]) -> str:
    """Write the page, and say where."""
    given = read_arguments("report", arguments, {"output": ""}, folders=len(arguments))
    if not given.folders:
        raise ValueError("report: which run or sweep? mae-nas report FOLDER...")
    folders = [Path(folder) for folder in given.folders]
    for folder in folders:
        if not any(
            (folder / name).exists() for name in ("sweep.csv", "config.json", "summary.json")
        ):
            below = f"; mae-nas runs {folder} lists runs below it" if folder.is_dir() else ""
            raise ValueError(f"{folder}: not the folder of a run or of a sweep{below}")
    output = Path(given.options["output"] or folders[0] / "report.html")
    if output.is_dir():
        raise ValueError(f"output: {output} is a folder; name a file in it")
    write_text(output, page([section for folder in folders for section in _sections(folder)]))
    return f"report: {output}"


def page(sections: Sequence[Section]) -> str:
    """The page; every text in it is escaped."""
    template = files("mae_nas.cli").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, finalize=_printable, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(sections=sections)


def _printable(value: object) -> object:
    return printable(value) if isinstance(value, str) else value


def _sections(folder: Path) -> Iterator[Section]:
    if (folder / "sweep.csv").exists():
        yield _sweep(folder)
    else:
        command = command_of(_config(folder / "config.json", []))
        sections = {"train": _training, "pretrain": _pretraining}
        yield sections.get(command, _run)(folder)


def _sweep(folder: Path) -> Section:
    missing: list[str] = []
    rows = _table(folder / "sweep.csv", missing)
    swept = rows[0] if rows else []
    configs = [
        config for run in sorted(folder.glob("*/config.json")) if (config := _config(run, missing))
    ]
    common = {}
    for name, key in SEARCHED.items():
        values = {_said(config, key) for config in configs}
        common[name] = values.pop() if len(values) == 1 else "differs"
    return Section(
        title=f"Sweep {folder.name}",
        facts={"Common to all runs there": common} if configs else {},
        head=rows[0] if rows else (),
        rows=rows[1:],
        pictures=_pictures(folder, {SWEEP_PICTURE: "Skips and loss over the swept axes"}, missing),
        notes=[paper for key, paper in PAPER.items() if key in swept],
        missing=missing,
    )


def _config(path: Path, missing: list[str]) -> object:
    try:
        return RunFolder(path.parent).read_config()
    except (OSError, ValueError) as error:
        missing.append(_why(error))
        return None


def _table(path: Path, missing: list[str]) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = [*csv.reader(file)] or [[]]
            return [
                head,
                *([_short(*pair) for pair in zip(head, row, strict=False)] for row in rows),
            ]
    except (OSError, ValueError, csv.Error) as error:
        missing.append(f"{path.name}: {_why(error)}")
        return []


def _short(column: str, cell: str) -> str:
    """What was measured to four digits; other text as it is."""
    try:
        return f"{float(cell):.4g}" if column in _MEASURED else cell
    except ValueError:
        return cell


def _run(path: Path) -> Section:
    folder, missing = RunFolder(path), list[str]()
    state = look(path)
    config = _config(folder.config, missing)
    summary = _read(folder.summary, missing)
    reading = _read(folder.genotype, missing)
    skips = {}
    for kind in ("normal", "reduce"):
        chance = _said(summary, f"skip_chance.{kind}.mean")
        if kind == "normal" and summary is None:  # not finished
            chance = _said(reading, "chance_normal")
        skips[f"{kind} cell, skips"] = f"{_said(reading, f'skips.{kind}')} (chance {chance})"
    losses = {"held-out loss": _said(reading, "held_out_loss"), **_yardsticks(summary)}
    verdict = {"state": state.state, "verdict": _said(reading, "verdict")}
    verdict |= {"at step": _said(reading, "step")} | ({"why": state.reason} if state.reason else {})
    return Section(
        title=f"Run {path.name}",
        facts={
            "Result": {**verdict, **skips, **losses},
            "What was searched": {name: _said(config, key) for name, key in SEARCHED.items()},
            "Cost": {name: _said(summary, key) for name, key in COSTS.items()},
            "Environment": _environment(summary),
        },
        head=("cell alone, of this width and depth", "parameters", "multiply-adds", "normal skips"),
        rows=_complexity(folder, config, summary, missing),
        pictures=_pictures(folder.plots, PICTURES, missing),
        notes=(),
        missing=missing,
        command=_repeated("search", summary, missing),
    )


def _training(path: Path) -> Section:
    folder, missing = RunFolder(path), list[str]()
    config, summary = _config(folder.config, missing), _read(folder.summary, missing)
    state = look(path)
    shares = find(summary, "test_top1_by_class")
    rows = [[str(name), _said(value, "")] for name, value in leaves(shares) if name]
    return Section(
        title=f"Training {path.name}",
        facts={
            "Result": {"state": state.state} | ({"why": state.reason} if state.reason else {}),
            "On the test images": {name: _said(summary, key) for name, key in TESTED.items()},
            "What was trained": {name: _said(config, key) for name, key in TRAINED.items()},
            "Cost": {name: _said(summary, key) for name, key in TRAIN_COSTS.items()},
            "Environment": _environment(summary),
        },
        head=("class", "share of its test images that is right") if rows else (),
        rows=rows,
        pictures=_pictures(folder.plots, TRAIN_PICTURES, missing),
        notes=(),
        missing=missing,
        command=_repeated("train", summary, missing),
    )


def _pretraining(path: Path) -> Section:
    folder, missing = RunFolder(path), list[str]()
    config, summary = _config(folder.config, missing), _read(folder.summary, missing)
    state = look(path)
    result = {"state": state.state} | ({"why": state.reason} if state.reason else {})
    loss = "–" if state.loss is None else f"{state.loss:.4g}"
    return Section(
        title=f"Pretraining {path.name}",
        facts={
            "Result": {**result, "held-out loss": loss, **_yardsticks(summary)},
            "What was trained": {name: _said(config, key) for name, key in PRETRAINED.items()},
            "Cost": {name: _said(summary, key) for name, key in TRAIN_COSTS.items()},
            "Environment": _environment(summary),
        },
        head=(),
        rows=(),
        pictures=_pictures(folder.plots, PRETRAIN_PICTURES, missing),
        notes=(),
        missing=missing,
        command=_repeated("pretrain", summary, missing),
    )


def _yardsticks(summary: object) -> dict[str, str]:
    return {
        f"loss of {name.replace('_', ' ')}": _said(value, "")
        for name, value in leaves(find(summary, "yardsticks"))
        if name
    }


def _repeated(command: str, summary: object, missing: list[str]) -> str:
    """The command that makes the run again, if it is known and names no code but ours."""
    overrides = find(summary, "overrides")
    given = [str(word) for word in overrides] if isinstance(overrides, list) else None
    if given is not None and (foreign := _foreign(given)):
        missing.append(f"command: it names code that is not mae_nas's: {foreign}")
        return ""
    return "" if given is None else _command(command, given)


def _environment(summary: object) -> dict[str, str]:
    return {
        "backend": _said(summary, "backend"),
        "device": _said(summary, "device.name"),
        "threads": _said(summary, "device.threads"),
        "commit": _said(summary, "git.commit")[:12],
        **{name: _said(value, "") for name, value in leaves(find(summary, "versions"))},
    }


def _foreign(overrides: Sequence[str]) -> str:
    """Classes that are not ours, of a command that a stranger's file says."""
    named = [word for word in overrides if "_target_=" in word]
    return ", ".join(word for word in named if not word.partition("=")[2].startswith(OWN))


def _complexity(
    folder: RunFolder, config: object, summary: object, missing: list[str]
) -> list[list[str]]:
    """The cell found and published ones, each alone in place of the supernet."""
    space = str(find(config, "space._target_")).removeprefix("mae_nas.spaces.")
    width, depth = _count(config, "supernet.width"), _count(config, "supernet.depth", DEEPEST)
    side, channels = _count(summary, "data.side"), _count(summary, "data.channels")
    taps, name = find(config, "decoder.taps"), find(config, "supernet.stem")
    stages = (
        max((tap for tap in taps if tap in (1, 2, 3)), default=3) if isinstance(taps, list) else 3
    )
    if space not in SPACES or not width * depth * side * channels:
        missing.append("complexity: not known before the end, and in the spaces S0 to S4 alone")
        return []
    from mae_nas import spaces  # torch, seconds
    from mae_nas.backbone import StemName
    from mae_nas.runs.records import costs_alone
    from mae_nas.supernet import SupernetSize

    stem = cast("StemName", name) if name in get_args(StemName) else "auto"
    searched, size = getattr(spaces, space)(), SupernetSize(width, depth, stem)
    rows = []
    for name, text in {"found": str(folder.path.resolve()), **{n: n for n in PUBLISHED}}.items():
        try:
            cells = read_genotype(text)
            costs = costs_alone(text, searched, size, side, channels, stages)
        except (ValueError, OSError) as error:
            if name == "found":
                missing.append(f"complexity: {first_line(error)}")
                return []
            continue  # a published cell that is not of this space
        skips = sum(edge.primitive == "skip_connect" for edge in cells.normal.edges)
        rows.append([name, *(f"{value:,}" for value in costs.values()), str(skips)])
    return rows


def _count(tree: object, key: str, most: int = WIDEST) -> int:
    """A whole number that a stranger's file may say; 0 if it is none, or absurd."""
    value = find(tree, key)
    return value if isinstance(value, int) and 0 < value <= most else 0


def _command(name: str, overrides: Sequence[str]) -> str:
    """That makes the same run anew, wherever it went and whatever it continued."""
    words = [word for word in overrides if not word.lstrip("+~").startswith(("hydra.", "resume="))]
    return shlex.join(["mae-nas", name, *words])


def _pictures(
    folder: Path, captions: Mapping[str, str], missing: list[str]
) -> list[tuple[str, str]]:
    """Of SVG where there is one: as an image, in which a browser runs no script."""
    found = []
    for name, caption in captions.items():
        file = folder / f"{name}.svg"
        if file.is_symlink() or not file.is_file() or file.stat().st_size > MOST_BYTES:
            missing.append(f"{file.name}: no such picture")
            continue
        content = base64.b64encode(file.read_bytes()).decode()
        found.append((caption, f"data:image/svg+xml;base64,{content}"))
    return found


def _read(path: Path, missing: list[str]) -> object:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        missing.append(f"{path.name}: {_why(error)}")
        return None


def _why(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _said(tree: object, key: str) -> str:
    value = find(tree, key)
    if value is ABSENT or value is None:
        return "–"
    if key == "wall_seconds" and isinstance(value, int | float) and 0 <= value < MOST_SECONDS:
        return str(timedelta(seconds=round(value)))
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if value >= 10_000 else str(value)
    return str(value)
