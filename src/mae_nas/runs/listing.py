"""What became of runs, read back from their folders: each run's own files are the truth."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from mae_nas.keys import ABSENT, find
from mae_nas.runs.files import read_json
from mae_nas.runs.folder import FORMAT, RunFolder
from mae_nas.runs.tables import JsonLines

MEASURES: Mapping[str, Sequence[str]] = {
    "search": ("skips_normal", "loss", "verdict", "seconds", "chance_normal"),
    "train": ("top1", "loss", "seconds"),
    "pretrain": ("loss", "seconds"),
}
"""What tables show of the runs of a command."""
Value = TypeVar("Value")


def command_of(config: object) -> str:
    """The command whose run a stored configuration is of."""
    if find(config, "recipe") is not ABSENT:
        return "train"
    return "search" if find(config, "pretraining") is ABSENT else "pretrain"


@dataclass(frozen=True)
class RunState:
    """One run, as its folder shows it; None is what it does not show.

    Args:
        folder: of the run.
        state: `running` (a living process holds it), `stopped` (it can go on), `finished`,
            `collapsed` (stopped by the verdict), `failed` or `unreadable`.
        step: of the last reading, like the next three.
        verdict: on collapse.
        loss: held-out and masked; of a training, cross entropy.
        skips_normal: skip connections of the normal cell.
        chance_normal: their mean over cells derived from noise.
        seconds: that the run took.
        age: seconds since its last sign of life.
        reason: why it failed.
        top1: share of right classes, of a training.
    """

    folder: Path
    state: str
    step: int | None = None
    verdict: str | None = None
    loss: float | None = None
    skips_normal: int | None = None
    chance_normal: float | None = None
    seconds: float | None = None
    age: float | None = None
    reason: str = ""
    top1: float | None = None

    def measures(self, command: str) -> dict[str, object]:
        """What tables show of it as a run of `command`."""
        return {name: getattr(self, name) for name in MEASURES[command]}


def look(path: Path) -> RunState:
    """The state of the run in `path`, which is not disturbed."""
    folder = RunFolder(path)
    try:
        reading = read_json(folder.genotype) if folder.genotype.exists() else None
        trained = JsonLines(folder.readings).rows()[-1:]  # of a training or pretraining
        reading = trained[0] if trained else reading
        summary = read_json(folder.summary) if folder.summary.exists() else None
        is_held = folder.is_held()
    except (ValueError, OSError) as error:
        return RunState(path, "unreadable", reason=str(error))
    top1 = _value(reading, "top1", float)
    files = (folder.config, folder.metrics, folder.genotype, folder.log, folder.summary)
    signs = [file.stat().st_mtime for file in files if file.exists()]
    return RunState(
        folder=path,
        state="running" if is_held else _value(summary, "state", str) or "stopped",
        step=_value(reading, "step", int),
        verdict=_value(reading, "verdict", str),
        loss=_value(reading, "held_out_loss" if top1 is None else "loss", float),
        skips_normal=_value(reading, "skips.normal", int),
        chance_normal=_value(summary, "skip_chance.normal.mean", float)
        or _value(reading, "chance_normal", float),  # of a run that goes on, or was killed
        top1=top1,
        seconds=_value(summary, "wall_seconds", float),
        age=max(0.0, time.time() - max(signs)) if signs else None,
        reason=_value(summary, "reason", str) or "",
    )


def _value(tree: object, key: str, kind: type[Value]) -> Value | None:
    value = find(tree, key)
    return value if isinstance(value, kind) else None


def find_runs(root: Path) -> list[RunState]:
    """All runs in `root` and below it, the one that changed last at the end."""
    found = [
        look(config.parent) for config in sorted(root.rglob("config.json")) if _is_ours(config)
    ]
    return sorted(found, key=lambda run: run.age or 0.0, reverse=True)


def _is_ours(config: Path) -> bool:
    """Whether a run's configuration is in it, not another program's: its head says so."""
    try:
        with config.open("rb") as file:
            return FORMAT.encode() in file.read(100)
    except OSError:
        return False


def columns(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as text, their values below their keys."""
    lines = [list(rows[0]), *([_said(*pair) for pair in row.items()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _said(key: str, value: object) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return printable(str(value))
    is_time = key in ("seconds", "age")
    return str(timedelta(seconds=value)).partition(".")[0] if is_time else f"{value:.4f}"


def counted(number: int, noun: str) -> str:
    """`1 skip`, `2 skips`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """Text from elsewhere, in which an escape or a line's end is shown, not obeyed."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
