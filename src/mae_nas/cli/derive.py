"""`mae-nas derive`: the best cells of a search under limits, and what looser limits would buy."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_nas.cli.arguments import check_folder, decimal_number, read_arguments, whole_number
from mae_nas.cli.place import DEVICES, PLACE, check_choices, million, named_device, read_place
from mae_nas.cli.searched import Searched, load_searched
from mae_nas.notation import darts_text
from mae_nas.runs.files import read_json, write_json, write_text
from mae_nas.runs.listing import columns

if TYPE_CHECKING:
    from mae_nas.network.complexity import Place
    from mae_nas.network.latency_table import LatencyTable
    from mae_nas.spaces.budgets import Budgets, OverBudgetError

USAGE = """\
mae-nas derive run=RUN [max_macs=M] [max_params=M] [max_latency_ms=X] [max_skips=N] [KEY=VALUE ...]

The best-scoring cells of a search that stay within limits, exactly, and the Pareto front: what
more of each cost would buy. The score is the sum of the chosen mixing weights; without a limit the
cells are those that DARTS's rule derives.
  max_macs= max_params=   millions, of the whole network below, without its auxiliary head
  max_latency_ms=         of a batch on this device, by a table that is measured first (a minute)
  max_skips=              skip connections in the normal cell
  reading=last|STEP       of the search
  network=cifar|cifar_small|small|tiny|imagenet
                          or network.width=36 network.depth=20 network.stem=cifar
                          network.auxiliary=true
  classes= side= channels=   of the images: by default the search's where the stem is for them,
                          else those of CIFAR-10 or ImageNet (64 pixels for the small stem)
  latency=false|true      measure the table without a limit, too
  batch=1 threads=1 device=auto|cpu|cuda seconds=1 checked=5
                          how it is measured, and random cells that it is tried on
  space._target_=my_module.MySpace   a space of your own is named again
  output=FOLDER           genotype.json, pareto.csv, pareto.png and latency.json go there (default:
                          RUN/derived); a latency.json of the same network and device is used again
  format=text|json
"""

_MAXIMA = {"max_macs": "macs", "max_params": "params", "max_latency_ms": "latency"}
_MAXIMA |= {"max_skips": "skips"}
_UNITS = {"macs": 10**6, "params": 10**6, "latency": 10**6, "skips": 1}
_SAID = {"macs": " M multiply-adds", "params": " M parameters", "latency": " ms", "skips": " skips"}
_DEFAULTS = {"run": "", **dict.fromkeys(_MAXIMA, ""), **PLACE, "reading": "last"}
_DEFAULTS |= {"latency": "false", "batch": "1", "threads": "1", "device": "auto", "seconds": "1"}
_DEFAULTS |= {"checked": "5", "space._target_": "", "output": "", "format": "text"}
_ROWS, _LONGEST = 12, 1e7  # of the front shown; ms


def derive(arguments: Sequence[str]) -> str:
    """The cells and the front, as text or JSON; files are written last, if all went well."""
    options = read_arguments("derive", arguments, _DEFAULTS).options
    check_choices(options, {"latency": ("true", "false"), "device": DEVICES})
    for key in ("batch", "threads", "checked"):
        whole_number(key, options[key])
    decimal_number("seconds", options["seconds"])
    limits = _limits(options)
    output = _output(options)
    searched = load_searched(options["run"], options["reading"], options["space._target_"])
    place = read_place(options, searched.images)

    from mae_nas.network.costs import cost_tables  # torch, seconds
    from mae_nas.spaces.budgets import Budgets, OverBudgetError

    costs = cost_tables(searched.space, place)
    measured, note = None, ""
    try:
        budgets = Budgets(searched.scores, costs, searched.space)
        if "latency" in limits or options["latency"] == "true":
            budgets.best({name: most for name, most in limits.items() if name != "latency"})
            measured, note = _table(searched, place, options, output)
            costs["latency"] = measured.costs(searched.space)
            budgets = Budgets(searched.scores, costs, searched.space)
        facts = _facts(budgets, limits)
    except OverBudgetError as error:
        raise ValueError(_over(error, options, place.side)) from None
    facts |= {"network": asdict(place.size), "side": place.side, "channels": place.channels}
    facts |= {"classes": place.classes, "run": options["run"], "reading": searched.step}
    facts |= {"latency": measured and measured.to_dict()}
    files = _write(facts, measured, output)
    if options["format"] == "json":
        return json.dumps(facts, indent=1)
    words = [f"{note}: {measured.in_words()}"] if measured else []
    return "\n".join([*_page(facts, words), *(f"written: {file}" for file in files)])


def _limits(options: Mapping[str, str]) -> dict[str, int]:
    """By cost, in whole units: multiply-adds, parameters, nanoseconds, skips."""
    limits = {}
    for key, name in _MAXIMA.items():
        if not (text := options[key]):
            continue
        if name == "skips":
            if not re.fullmatch(r"[0-9]{1,4}", text):
                raise ValueError(f"{key}={text[:100]}: must be a whole number, 0 or more")
        elif name == "latency":
            if decimal_number(key, text) > _LONGEST:
                raise ValueError(f"{key}={text[:100]}: is in milliseconds, at most {_LONGEST:g}")
        else:
            million(key, text)
        limits[name] = int(Decimal(text) * _UNITS[name])
    return limits


def _output(options: Mapping[str, str]) -> Path:
    output = Path(options["output"]) if options["output"] else Path(options["run"]) / "derived"
    check_folder("output", output)
    if (output / "config.json").exists():
        raise ValueError(f"output: {output} is a run folder; its genotype.json is the run's own")
    return output


def _table(
    searched: Searched, place: "Place", options: Mapping[str, str], output: Path
) -> "tuple[LatencyTable, str]":
    """The table of latencies, and where it comes from."""
    import torch

    from mae_nas.network.latency_table import describe_place, measure_table, read_table

    device = named_device(options["device"])
    torch.set_num_threads(whole_number("threads", options["threads"]))
    batch, checked = (whole_number(key, options[key]) for key in ("batch", "checked"))
    seconds = decimal_number("seconds", options["seconds"])
    file = output / "latency.json"
    where = describe_place(place, batch, device)
    again = ""
    if file.exists():
        try:
            known = read_table(read_json(file), where, searched.space)
            if known.seconds >= seconds and len(known.checked) >= checked:
                return known, f"latencies of {file}"
            again = f" anew, more than for {file}"
        except ValueError as error:
            again = f" anew, since {file} {str(error).removeprefix(f'{file}: ')}"
    measured = measure_table(searched.space, place, batch, device, seconds, checked)
    return measured, f"latencies measured{again}"


def _facts(budgets: "Budgets", limits: Mapping[str, int]) -> dict[str, Any]:
    """What scripts read, in JSON's types."""
    best, free = budgets.best(limits), budgets.best({})
    fronts = {name: budgets.front(name) for name in budgets.costs}

    def said(costs: Mapping[str, int]) -> dict[str, Any]:
        latency = costs["latency"] / _UNITS["latency"] if "latency" in costs else None
        return {
            **{name: int(costs[name]) for name in ("macs", "params", "skips")},
            "latency_ms": latency,
        }

    return {
        "genotype": best.genotype.to_dict(),
        "score": best.score,
        **said(best.costs),
        "limits": {key: limits[n] / _UNITS[n] for key, n in _MAXIMA.items() if n in limits},
        "unlimited": {"score": free.score, **said(free.costs)},
        "front": {
            name: [
                {"score": float(score), **said({n: front.costs[n][i] for n in front.costs})}
                for i, score in enumerate(front.score)
            ]
            for name, front in fronts.items()
        },
    }


def _over(error: "OverBudgetError", options: Mapping[str, str], side: int) -> str:
    """Which limit cannot be met, and the least that can, rounded up."""
    keys = {name: key for key, name in _MAXIMA.items()}
    least = math.ceil(1e4 * error.least / _UNITS[error.name]) / 1e4
    key, amount = keys[error.name], f"{least:,.10g}{_SAID[error.name]}"
    if not error.given:
        where = f"network={options['network']}" + (
            "" if error.name == "skips" else f", images of side {side}; see network= and side="
        )
        return f"{key}={options[key]}: the least that these cells take is {amount} ({where})"
    given = " and ".join(f"{keys[name]}={options[keys[name]]}" for name in error.given)
    return f"{key}={options[key]}: not together with {given}, under which the least is {amount}"


def _write(facts: Mapping[str, Any], measured: "LatencyTable | None", output: Path) -> list[str]:
    """All files; their names."""
    from mae_nas.runs.front_plots import plot_fronts  # matplotlib

    output.mkdir(parents=True, exist_ok=True)
    others = {key: value for key, value in facts.items() if key not in ("genotype", "front")}
    write_json(output / "genotype.json", {**facts["genotype"], "derived": others})
    if measured:
        write_json(output / "latency.json", measured.to_dict())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["front", *facts["unlimited"]])
    for name, rows in facts["front"].items():
        writer.writerows([name, *row.values()] for row in rows)
    write_text(output / "pareto.csv", text.getvalue())
    axes = {"macs": ("multiply-adds, M", 1e6), "params": ("parameters, M", 1e6)}
    axes |= {"skips": ("skips of the normal cell", 1), "latency_ms": ("latency, ms", 1)}
    fronts, chosen = {}, {}
    for name, rows in facts["front"].items():
        key = "latency_ms" if name == "latency" else name
        label, unit = axes[key]
        fronts[label] = [(row[key] / unit, row["score"]) for row in rows]
        chosen[label] = facts[key] / unit
    plot_fronts(fronts, chosen, facts["score"], output / "pareto.png")
    names = ["genotype.json", "pareto.csv", "pareto.png", *(["latency.json"] if measured else [])]
    return [str(output / name) for name in names]


def _page(facts: Mapping[str, Any], notes: Sequence[str]) -> Iterator[str]:
    def shown(row: Mapping[str, Any]) -> dict[str, str]:
        latency = {} if row["latency_ms"] is None else {"latency ms": f"{row['latency_ms']:.3f}"}
        return {
            "score": f"{row['score']:.5f}",
            "macs M": f"{row['macs'] / 1e6:.2f}",
            "params M": f"{row['params'] / 1e6:.4f}",
            "skips": str(row["skips"]),
            **latency,
        }

    try:
        yield darts_text(facts["genotype"])
    except ValueError:  # nodes of this space keep more than two edges, or fewer
        yield json.dumps(facts["genotype"])
    limits = ", ".join(f"{key}={value:.10g}" for key, value in facts["limits"].items())
    pair = {limits or "no limit": shown(facts), "unlimited": shown(facts["unlimited"])}
    yield columns([{"cells": name, **row} for name, row in pair.items()])
    size = facts["network"]
    yield (
        f"reading at step {facts['reading']}; network of width {size['width']}, {size['depth']} "
        "cells; images of {side} × {side}, channels {channels}, classes {classes}".format(**facts)
    )
    yield from notes
    limited = [_MAXIMA[key] for key in facts["limits"]]
    name = limited[0] if limited else "macs"
    rows = facts["front"][name]
    few = sorted({round(i * (len(rows) - 1) / (_ROWS - 1)) for i in range(_ROWS)})
    of = f"{len(few)} of {len(rows)}" if len(few) < len(rows) else f"all {len(rows)}"
    yield f"Pareto front of score and {name}, {of}:"
    yield columns([shown(rows[i]) for i in few])
