"""`mae-nas compare`: networks pretrained alike, equally fast, and what their features are worth."""

import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_nas.cli.arguments import check_folder, decimal_number, read_arguments, whole_number
from mae_nas.cli.codes import JobsFailedError
from mae_nas.cli.spelling import quoted, suggest
from mae_nas.keys import find

if TYPE_CHECKING:
    from mae_nas.cli.jobs import Job

USAGE = """\
mae-nas compare genotypes=A,B,random:0 models=resnet18 [budget_minutes=10] [seeds=3] [KEY=VALUE ...]

Are the features of a found network better than those of a random one, or of a network of timm that
is as fast? All are pretrained for the same minutes on the same images, masks and seeds, the widths
of genotypes chosen so that they take as long as the first model (or latency_ms=), measured here;
then probed. Stopped, it goes on where it was.
  genotypes, models    with commas; files, run folders, names, random:SEED; models of timm
  budget_minutes=10    of each pretraining's steps, by what a step takes here; start, readings,
                       matching widths and probing come on top
  seeds=3              0, 1, 2, ...
  latency_ms=          that all genotypes are to take; by default what the first model takes
  batch=32 threads=1   how latency is measured; threads are those of training as well. Of single
                       small images it would be that of the calls, whatever the width
  most=                training images that probes use; default: all
  output=runs/compare  folder of the runs, compare.json, compare.png
  data=, mask.ratio=, network=cifar_small, ...   keys of mae-nas pretrain
  format=text|json
"""

_DEFAULTS = {"genotypes": "", "models": "", "budget_minutes": "10", "seeds": "3"}
_DEFAULTS |= {"latency_ms": "", "batch": "32", "threads": "1", "most": ""}
_DEFAULTS |= {"output": "runs/compare", "format": "text"}
_OWN = {
    "seed": "of seeds=",
    "genotype": "of genotypes=",
    "model": "of models=",
    "network.width": "so that networks are equally fast",
    "pretraining.steps": "of budget_minutes=",
    "efficiency.threads": "of threads=",
    "resume": "so that it goes on",
    "hydra.run.dir": "of output=",
}
MEASURES = {
    "rank_me": "RankMe",
    "knn.top1": "kNN",
    "linear.top1": "linear probe",
    "few_1.linear.top1": "linear, 1 % of labels",
    "few_10.linear.top1": "linear, 10 % of labels",
}
log = logging.getLogger("mae_nas")


def compare(arguments: Sequence[str]) -> str:
    """Pretrain, probe and compare; the table, or JSON."""
    given = read_arguments("compare", arguments, _DEFAULTS, overrides=True)
    options = given.options
    decimal_number("budget_minutes", options["budget_minutes"])
    numbers = {key: whole_number(key, options[key]) for key in ("seeds", "batch", "threads")}
    names = _names(options)
    for word in given.overrides:
        key = word.lstrip("+~").partition("=")[0]
        if "." not in key and (near := suggest(key, _DEFAULTS)):
            raise ValueError(f"{word}: no such option of compare{near}")
        if key in _OWN:
            raise ValueError(f"{word}: compare sets {key} itself, {_OWN[key]}")

    from mae_nas.cli.compare_plan import planned
    from mae_nas.cli.launcher import LauncherSettings, Signals, run_jobs

    output = Path(options["output"])
    check_folder("output", output)
    signals = Signals()
    try:
        with signals.listening():
            plan = planned(names, options, given.overrides, output)
            jobs = list(_jobs(plan, numbers["seeds"], output))
            ended = run_jobs(jobs, LauncherSettings(1, "process", {}), signals)
            if signals.received:
                raise KeyboardInterrupt
            if missing := [job for job in ended if not job.ended]:
                reasons = "; ".join(f"{job.folder.name}: {job.reason}" for job in missing[:3])
                said = f"{len(missing)} of {len(jobs)} pretrainings have not ended"
                raise JobsFailedError(f"{said}: {reasons}")
            signals.has_started = False  # no job runs: a signal ends it at once
            rows = list(_rows(plan, ended, options))
    except KeyboardInterrupt:
        sys.stderr.write(f"mae-nas: stopped; the same command goes on in {output}\n")
        raise
    return _answer(rows, output, options["format"])


def _names(options: Mapping[str, str]) -> dict[str, str]:
    """What each network is called here: the override that names it to `pretrain`."""
    from mae_nas.cli.profile import genotypes_named

    models = [name for name in options["models"].split(",") if name]
    if not options["genotypes"]:
        raise ValueError("genotypes: needed, e.g. genotypes=DARTS_V2,random:0 models=resnet18")
    genotypes = [name for name, _ in genotypes_named([options["genotypes"]])]
    if not models and not options["latency_ms"]:
        raise ValueError("models: needed, e.g. models=resnet18; or latency_ms=")
    if options["latency_ms"]:
        decimal_number("latency_ms", options["latency_ms"])
    named = {_short(text): f"genotype={quoted(text)}" for text in genotypes}
    named |= {name: f"model={name}" for name in models}
    if len(named) < len(genotypes) + len(models):
        raise ValueError("genotypes, models: two of them have the same name")
    return named


def _short(text: str) -> str:
    """A folder's name for a genotype."""
    name = Path(text).name if "/" in text else text
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def _jobs(plan: Mapping[str, Any], seeds: int, output: Path) -> "Iterator[Job]":
    from mae_nas.cli.compare_plan import composed
    from mae_nas.cli.jobs import Job

    number = 0
    for seed in range(seeds):  # all networks of a seed, then those of the next
        for name, facts in plan["networks"].items():
            words = (*facts["words"], f"seed={seed}")
            config = composed(words)
            point = {"network": name, "seed": str(seed)}
            yield Job(number, output / f"{name}-seed{seed}", "pretrain", words, point, config)
            number += 1


def _rows(
    plan: Mapping[str, Any], jobs: "Sequence[Job]", options: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """A record for each pretraining that has ended, its features probed once."""
    from mae_nas.cli.logs import say
    from mae_nas.cli.probe import probe
    from mae_nas.runs.files import read_json

    for job in jobs:
        if not job.ended:
            continue
        answer, found = job.folder / "probe.json", None
        if answer.exists():
            found = read_json(answer)
        if find(found, "most") != options["most"]:
            say(f"{job.folder.name}: probing")
            words = [f"checkpoint={job.folder}", f"output={answer}", f"seed={job.point['seed']}"]
            probe([*words, f"threads={options['threads']}", f"most={options['most']}"])
            found = read_json(answer)
        summary = read_json(job.folder / "summary.json")
        assert isinstance(summary, dict)
        yield {
            "network": job.point["network"],
            "seed": int(job.point["seed"]),
            "probe": found,
            **{k: plan["networks"][job.point["network"]][k] for k in _KEPT},
            **{k: summary[k] for k in ("final", "device", "git", "versions", "wall_seconds")},
            **{k: summary[k] for k in ("config", "config_hash", "overrides", "yardsticks")},
        }


_KEPT = ("width", "params", "macs", "step_seconds", "steps", "latency_ms")


def measured(
    rows: Sequence[Mapping[str, Any]], key: str, of: str = "network"
) -> dict[str, list[float]]:
    """A probe's values by network, a value for each seed; those of a network without are left.

    Args:
        rows: records.
        key: of the value in the probe's answer.
        of: `network`, or `random`: the same network with random weights.
    """
    found: dict[str, list[float]] = {}
    for row in rows:
        value = find(row["probe"], f"{of}.{key}")
        if isinstance(value, float):
            found.setdefault(row["network"], []).append(value)
    return found


def panels(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """What the picture shows: by title, then by network, a value for each seed."""
    shown = {}
    for key, title in MEASURES.items():
        found = measured(rows, key)
        if found and key != "rank_me":
            percent = {name: [100 * v for v in values] for name, values in found.items()}
            shown[f"{title}, %"] = percent
        elif found:
            shown[title] = found
    return shown


def compared(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """A row for each network: cost, means with intervals, and the first network less it.

    Differences from a network that is not as fast, within a tenth, are said to be that.
    """
    from mae_nas.runs.spread import difference, interval

    first = rows[0]
    for name in dict.fromkeys(row["network"] for row in rows):
        facts = next(row for row in rows if row["network"] == name)
        pace = facts["latency_ms"]["median"] / first["latency_ms"]["median"]
        unequal = "" if 0.9 <= pace <= 1.1 else "; not equally fast"
        minutes = [row["wall_seconds"] / 60 for row in rows if row["network"] == name]
        said = {
            "network": name,
            "width": str(facts["width"] or "timm"),
            "features": str(facts["probe"]["features"]),
            "params M": f"{facts['params'] / 1e6:.2f}",
            "latency ms": "{median:.2f} ({low:.2f} to {high:.2f})".format(**facts["latency_ms"]),
            "steps": str(facts["steps"]),
            "minutes, with readings": f"{min(minutes):.1f} to {max(minutes):.1f}",
        }
        for key, title in MEASURES.items():
            values = measured(rows, key)
            if name not in values:
                continue
            unit = 1 if key == "rank_me" else 100
            mean = unit * sum(values[name]) / len(values[name])
            low, high = (unit * end for end in interval(values[name]))
            title += "" if key == "rank_me" else ", %"
            said[title] = f"{mean:.1f} " + _between(low, high, "")
            if random := measured(rows, key, "random").get(name):
                said[f"{title}, random weights"] = f"{unit * sum(random) / len(random):.1f}"
            if name != first["network"] and key != "rank_me":  # which ranks nothing
                others = values[first["network"]], values[name]
                apart, low, high = (unit * each for each in difference(*others))
                told = "" if low > 0 or high < 0 else ", not distinguishable"
                words = f"{apart:+.1f} {_between(low, high, '+')}{told}{unequal}"
                said[f"{title}, {first['network']} less it"] = words
        yield said


def _between(low: float, high: float, sign: str) -> str:
    """An interval, if there is one."""
    is_known = math.isfinite(low) and math.isfinite(high)
    return f"[{low:{sign}.1f}, {high:{sign}.1f}]" if is_known else "(one seed: no interval)"


def _answer(rows: Sequence[Mapping[str, Any]], output: Path, form: str) -> str:
    from mae_nas.runs.compare_plots import plot_comparison
    from mae_nas.runs.files import write_json
    from mae_nas.runs.listing import columns

    write_json(output / "compare.json", list(rows))
    pictures = plot_comparison(panels(rows), output / "compare")
    if form == "json":
        return json.dumps(list(rows), indent=1)
    networks = list(compared(rows))
    keys = list(dict.fromkeys(key for row in networks for key in row))
    lines = [{"": k, **{row["network"]: row.get(k, "") for row in networks}} for k in keys[1:]]
    files = [f"records  {output / 'compare.json'}", *(f"picture  {path}" for path in pictures)]
    labels = any(key in row["probe"]["network"] for key in ("knn", "linear") for row in rows)
    notes = [] if labels else ["no labels: RankMe ranks nothing, which is better is not known"]
    return "\n".join([columns(lines), *notes, *files])
