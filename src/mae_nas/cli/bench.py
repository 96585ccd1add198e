"""`mae-nas bench search`: a search step in several ways, side by side."""

import json
from collections.abc import Sequence
from pathlib import Path

from mae_nas.cli.arguments import read_arguments

_USAGE = """\
mae-nas bench search [KEY=VALUE ...]

Time a step of the search, one update of w and one of α, in several ways that take turns: as DARTS
published it (naive), edge by edge as a careful user would run it (reference), and fused. On a CPU,
in processor time.
  width=16 depth=8 side=32 batch=16   supernet, image and batch
  threads=1                           of the CPU
  repeats=7                           rounds; times are medians
  format=text|json                    a table, or a list of rows
  record=FILE                         append the rows, with commit, versions and device, as JSON
"""
_NUMBERS = {"width": 16, "depth": 8, "side": 32, "batch": 16, "threads": 1, "repeats": 7}


def usage() -> str:
    """What may be said."""
    return _USAGE


def bench(arguments: Sequence[str]) -> str:
    """The table, or JSON."""
    if arguments[:1] != ["search"]:
        raise ValueError("bench takes what is to be timed: mae-nas bench search")
    defaults = {key: str(value) for key, value in _NUMBERS.items()}
    plain = [
        "format=text" if argument == "format=table" else argument for argument in arguments[1:]
    ]
    given = read_arguments("bench", plain, {**defaults, "format": "text", "record": ""})
    numbers = {key: _number(key, given.options[key]) for key in _NUMBERS}
    record = Path(given.options["record"]) if given.options["record"] else None
    if record is not None and not record.parent.is_dir():
        raise ValueError(f"record: {record.parent} is not a folder")

    import torch
    from rich.console import Console

    from mae_nas.cli.assemble import progress
    from mae_nas.runs.bench import compare_ways
    from mae_nas.runs.listing import columns
    from mae_nas.runs.records import describe_device, git_state, versions
    from mae_nas.supernet import SupernetSize

    torch.set_num_threads(numbers["threads"])
    size = SupernetSize(numbers["width"], numbers["depth"])
    repeats = numbers["repeats"]
    with progress(Console(stderr=True), "timing steps") as on_progress:
        rows = compare_ways(
            size, numbers["side"], numbers["batch"], repeats, lambda n: on_progress(n, repeats)
        )
    if record is not None:
        facts = {"setting": numbers, "rows": rows, "git": git_state(), "versions": versions()}
        facts["device"] = describe_device(torch.device("cpu"))
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")
    return json.dumps(rows, indent=1) if given.options["format"] == "json" else columns(rows)


def _number(key: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{key}={text}: must be a number, 1 or more")
    return int(text)
