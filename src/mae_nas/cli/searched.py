"""A search's reading, read back from its run folder: data from a stranger until it is checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mae_nas.keys import find
from mae_nas.runs.files import read_json
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.listing import command_of
from mae_nas.runs.tables import JsonLines

if TYPE_CHECKING:
    from mae_nas.spaces import SearchSpace

_OURS = "mae_nas.spaces."
_MOST = 4096  # pixels or channels that images may have


@dataclass(frozen=True)
class Searched:
    """What a search had found.

    Args:
        space: that was searched.
        scores: (E, K) mixing weights per kind of cell.
        step: of the reading.
        images: `side` and `channels` of the images, as far as the run's files say.
    """

    space: "SearchSpace"
    scores: Mapping[str, NDArray[np.float64]]
    step: int
    images: Mapping[str, int]


def load_searched(text: str, reading: str, named: str) -> Searched:
    """A reading of the search in a run folder.

    Args:
        text: the folder.
        reading: its step, or `last`.
        named: class of the space if it is not ours: a stored name alone is not imported.

    Raises:
        ValueError: one line.
    """
    if not text:
        raise ValueError("run: needed, e.g. run=runs/search/2026-01-31_12-00-00")
    path = Path(text)
    if not path.is_dir():
        raise ValueError(f"run: {path} is not a folder; name the run folder of a search")
    folder = RunFolder(path)
    config = folder.read_config()
    if (command := command_of(config)) != "search":
        what = "training" if command == "train" else "pretraining"
        raise ValueError(f"run: {path} holds a {what}; name the search that its cells come from")
    row = _reading(JsonLines(folder.genotypes).rows(), reading, path)
    space = _space(config, named)
    summary = read_json(folder.summary) if folder.summary.exists() else None
    images = {}
    for key in ("side", "channels"):
        for value in (find(summary, f"data.{key}"), find(config, f"data.{key}")):
            if isinstance(value, int) and 0 < value <= _MOST:
                images.setdefault(key, value)
    scores = _scores(find(row, "scores"), space, folder.genotypes)
    return Searched(space, scores, int(str(row["step"])), images)


def _reading(
    rows: Sequence[Mapping[str, object]], reading: str, path: Path
) -> Mapping[str, object]:
    steps = [row["step"] for row in rows if isinstance(row["step"], int)]
    if not steps or len(steps) < len(rows):
        raise ValueError(
            f"run: {path} has no readings yet; a search writes one about every fiftieth of it"
        )
    if reading == "last":
        return rows[-1]
    if not (reading.isascii() and reading.isdecimal() and len(reading) < 12):
        raise ValueError(f"reading={reading[:100]}: must be last or a step, e.g. {steps[-1]}")
    nearest = min(steps, key=lambda step: abs(step - int(reading)))
    if nearest != int(reading):
        raise ValueError(f"reading={reading}: there is none at this step; the nearest: {nearest}")
    return rows[steps.index(nearest)]


def _space(config: Mapping[str, object], named: str) -> "SearchSpace":
    from mae_nas.checks import raise_all  # torch, seconds
    from mae_nas.cli.build import build
    from mae_nas.spaces import SearchSpace

    node = config.get("space")
    if not isinstance(node, dict) or not isinstance(target := node.get("_target_"), str):
        raise ValueError("space._target_: the stored configuration names no space")
    if named and named != target:
        raise ValueError(f"space._target_={named}: the run's is {target}")
    if not named and (len(node) > 1 or not target.startswith(_OURS)):
        raise ValueError(
            f"space._target_: the stored configuration names {target}, which is not ours; "
            f"if you trust it, name it yourself: space._target_={target}"
        )
    space = build(SearchSpace, node, {}, "space")
    raise_all(space.problems())
    return space


def _scores(stored: object, space: "SearchSpace", path: Path) -> dict[str, NDArray[np.float64]]:
    from mae_nas.backbone import CELL_KINDS

    scores = {}
    for kind in CELL_KINDS:
        try:
            table = np.array(find(stored, kind), np.float64)
        except (TypeError, ValueError):
            table = np.empty(0)
        if table.shape != space.shape(kind) or not np.isfinite(table).all():
            edges, candidates = space.shape(kind)
            raise ValueError(
                f"{path}: the {kind} cell's scores are not {edges} × {candidates} numbers, as "
                f"{type(space).__name__} has them"
            )
        scores[kind] = table
    return scores
