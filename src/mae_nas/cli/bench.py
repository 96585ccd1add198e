"""`mae-nas bench search`: a search step in several ways, side by side."""

import json
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from mae_nas.cli.arguments import read_arguments, whole_number
from mae_nas.runs.files import append_line

USAGE = """\
mae-nas bench search|train [KEY=VALUE ...]

search: time a step of the search, one update of w and one of α, in several ways that take turns:
as DARTS published it (naive), edge by edge as a careful user would run it (reference), and fused.
On a CPU, in processor time.
  width=16 depth=8 side=32 batch=16   supernet, image and batch
  threads=1                           of the CPU
  repeats=7                           rounds; times are medians
  growth=false|true                   and again with few images, side and width halved and doubled
  format=text|json                    a table, or a list of rows
  record=FILE                         append all this, with commit, versions and device, as JSON;
                                      growth is drawn beside it

train: time a step of the training of a found network, beside the step as it is usually written.
  genotype=DARTS_V2 width=36 depth=20 side=32 batch=96 threads=1 repeats=3 format= record=
"""
_TRAINING = {"width": 36, "depth": 20, "side": 32, "batch": 96, "threads": 1, "repeats": 3}
_NUMBERS = {"width": 16, "depth": 8, "side": 32, "batch": 16, "threads": 1, "repeats": 7}


def bench(arguments: Sequence[str]) -> str:
    """The table, or JSON."""
    if arguments[:1] == ["train"]:
        return _bench_train(arguments[1:])
    if arguments[:1] != ["search"]:
        raise ValueError("bench takes what is to be timed: mae-nas bench search, or train")
    defaults = {key: str(value) for key, value in _NUMBERS.items()}
    plain = [
        "format=text" if argument == "format=table" else argument for argument in arguments[1:]
    ]
    defaults |= {"format": "text", "record": "", "growth": "false"}
    options = read_arguments("bench", plain, defaults).options
    numbers = {key: whole_number(key, options[key]) for key in _NUMBERS}
    if options["growth"] not in ("true", "false"):
        raise ValueError(f"growth={options['growth']}: use true or false")
    record = _record(options)
    facts = _measured(numbers, grows=options["growth"] == "true")
    if record is not None:
        append_line(record, json.dumps(facts))
        if facts["growth"]:
            from mae_nas.runs.bench_plots import plot_growth

            plot_growth(facts["growth"], record.with_name("growth"))
    rows = facts["rows"]
    return json.dumps(rows, indent=1) if options["format"] == "json" else _table(rows)


def _record(options: Mapping[str, str]) -> Path | None:
    """Where to append, its folder made."""
    record = Path(options["record"]) if options["record"] else None
    if record is not None and record.parent.exists() and not record.parent.is_dir():
        raise ValueError(f"record: {record.parent} is a file, not a folder")
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
    return record


def _bench_train(arguments: Sequence[str]) -> str:
    defaults = {key: str(value) for key, value in _TRAINING.items()}
    defaults |= {"genotype": "DARTS_V2", "format": "text", "record": ""}
    options = read_arguments("bench", arguments, defaults).options
    numbers = {key: whole_number(key, options[key]) for key in _TRAINING}
    record = _record(options)
    import torch
    from rich.console import Console

    from mae_nas.cli.assemble import progress
    from mae_nas.network import NetworkSize
    from mae_nas.network.complexity import Place
    from mae_nas.network.latency import describe_device
    from mae_nas.runs.listing import columns
    from mae_nas.runs.records import git_state, versions
    from mae_nas.runs.train_bench import TRAIN_WAYS, compare_training
    from mae_nas.spaces import S0
    from mae_nas.spaces.derivation import named_genotype

    torch.set_num_threads(numbers["threads"])
    genotype = named_genotype(options["genotype"], S0())
    place = Place(NetworkSize(numbers["width"], numbers["depth"]), 3, numbers["side"], 10)
    total, done = numbers["repeats"] * (len(TRAIN_WAYS) + 1), count(1)
    with progress(Console(stderr=True), "timing steps") as on_progress:
        rows = compare_training(
            genotype,
            place,
            numbers["batch"],
            numbers["repeats"],
            lambda: on_progress(next(done), total),
        )
    facts = {"setting": numbers | {"genotype": options["genotype"]}, "rows": rows}
    facts |= {"git": git_state(), "versions": versions()}
    facts |= {"device": describe_device(torch.device("cpu"))}
    if record is not None:
        append_line(record, json.dumps(facts))
    if options["format"] == "json":
        return json.dumps(rows, indent=1)
    return columns([{key: _digits(value) for key, value in row.items()} for row in rows])


def _digits(value: object) -> object:
    return f"{value:.3g}" if isinstance(value, float) else value


def _measured(numbers: Mapping[str, int], grows: bool) -> dict[str, Any]:
    """The record."""
    import torch
    from rich.console import Console

    from mae_nas.cli.assemble import progress
    from mae_nas.network.latency import describe_device
    from mae_nas.runs.bench import GROWING, WAYS, Setting, compare_ways, growth
    from mae_nas.runs.records import git_state, versions

    torch.set_num_threads(numbers["threads"])
    setting = Setting(**{key: numbers[key] for key in ("width", "depth", "side", "batch")})
    repeats = numbers["repeats"]
    few = min(repeats, 3) if grows else 0  # a picture needs no more, and waits long enough
    total, done = repeats * len(WAYS) + few * 5 * len(GROWING), count(1)
    with progress(Console(stderr=True), "timing steps") as on_progress:

        def on_step() -> None:
            on_progress(next(done), total)

        rows = compare_ways(setting, list(WAYS), repeats, on_step, with_wall=True)
        grown = growth(setting, few, on_step) if grows else []
    facts = {"setting": numbers, "rows": rows, "growth": grown}
    facts |= {"git": git_state(), "versions": versions()}
    return facts | {"device": describe_device(torch.device("cpu"))}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    from mae_nas.runs.listing import columns

    return columns(
        [
            {
                "name": row["name"],
                "seconds": f"{row['seconds']:.3g}",
                "(least, most)": f"({row['least']:.3g}, {row['most']:.3g})",
                "ratio": f"{row['ratio']:.2f}",
                "saved MB": f"{row['saved_mb']:.0f}",
                "operations": row["operations"],
                "of multiplying": f"{row['of_multiplication_rate']:.1%}",
                "of copying": f"{row['of_copy_rate']:.1%}",
                "wall, all threads": f"{row['wall_all_threads']:.3g}",
                "backend": row["backend"],
            }
            for row in rows
        ]
    )
