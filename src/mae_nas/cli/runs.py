"""`mae-nas runs`: the runs in a folder and what became of them."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from mae_nas.cli.arguments import read_arguments
from mae_nas.runs.listing import columns, find_runs

USAGE = """\
mae-nas runs [FOLDER] [format=text|json]

List the runs in FOLDER (default: runs) and below it, the last one to change at the end.
  state   running | stopped (resume=auto goes on) | finished | collapsed | failed | unreadable
  skips_normal   of the normal cell, beside chance_normal: the mean of cells derived from noise
  top1    accuracy of a training, on the images that it is judged by
  age     since the run's last sign of life
"""


def runs(arguments: Sequence[str]) -> str:
    """The list, as text or JSON."""
    given = read_arguments("runs", arguments, {"format": "text"}, folders=1)
    root = Path(*given.folders or ["runs"])
    if given.folders and not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    found = find_runs(root)
    if given.options["format"] == "json":
        rows = [{**dataclasses.asdict(run), "folder": str(run.folder)} for run in found]
        return json.dumps(rows, indent=2, ensure_ascii=False)
    if not found:
        return f"no runs in {root}"
    return columns(
        [
            {
                "run": run.folder.relative_to(root),
                "state": run.state,
                "step": run.step,
                **run.measures("search"),
                "top1": run.top1,
                "age": run.age,
                "reason": run.reason,
            }
            for run in found
        ]
    )
