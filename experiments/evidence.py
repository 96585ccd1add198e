"""From finished runs to records, and from records to what is claimed.

    python experiments/evidence.py collect CLAIM SWEEP   # a sweep's finished runs, as records
    python experiments/evidence.py report [CLAIM...]     # tables, pictures, the README's results

A claim is a folder here: `records.jsonl` holds a line per run (its summary.json, and what was read
along the way), and `report.py` makes `table.md` and pictures from the records and nothing else.
With `--folder`, records and what is made of them lie elsewhere, and the README is left alone.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_nas.checks import first_line
from mae_nas.keys import find
from mae_nas.runs.files import write_text
from mae_nas.runs.tables import JsonLines, MetricsTable
from mae_nas.search.collapse import chance_of_skips
from mae_nas.spaces import SearchSpace

Record = Mapping[str, Any]
HERE = Path(__file__).parent
SIGNIFICANCE = 0.05
DRAWS = 10_000
README = HERE.parent / "README.md"


def read_records(folder: Path) -> list[Record]:
    """The folder's records, in the file's order."""
    file = folder / "records.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def collect(folder: Path, runs: Iterable[Path]) -> int:
    """Add the finished runs among `runs` to the folder's records, and count them.

    A record of the same search is kept: what was measured once is not measured again.
    """
    records = {_identity(record): record for record in read_records(folder)}
    found = [record for run in sorted(runs) if (record := _record(run)) is not None]
    records = {_identity(record): record for record in found} | records
    lines = [json.dumps(records[key]) + "\n" for key in sorted(records)]
    write_text(folder / "records.jsonl", "".join(lines))
    return len(found)


def _identity(record: Record) -> str:
    """Which search it is: its whole configuration, seed included."""
    return json.dumps(record["config"], sort_keys=True)


def _record(run: Path) -> Record | None:
    """A run's summary with its course; None unless it has finished."""
    file = run / "summary.json"
    summary = json.loads(file.read_text()) if file.exists() else {}
    if summary.get("state") != "finished":
        return None
    readings = JsonLines(run / "genotypes.jsonl").rows()
    course = {
        "step": [row["step"] for row in readings],
        "held_out_loss": [row["held_out_loss"] for row in readings],
        **{
            f"{name}_{kind}": [find(row, f"{name}.{kind}") for row in readings]
            for name in ("skips", "entropy")
            for kind in ("normal", "reduce")
        },
    }
    rows = MetricsTable(run / "metrics.csv").rows()
    names = [name for name in rows[0] if name.startswith(("grad_norm_alpha", "rms_", "step"))]
    metrics = {name: [_number(row[name]) for row in rows] for name in names}
    return {**summary, "course": course, "metrics": metrics}


def _number(text: str) -> float | None:
    """To six digits, as much as a picture shows."""
    return float(f"{float(text):.6g}") if text else None


def grouped(records: Iterable[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    """Records by the values of some keys of their configurations, each group by seed."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in sorted(records, key=lambda r: r["seed"]):
        place = tuple(find(record["config"], key) for key in keys)
        groups.setdefault(place, []).append(record)
    return dict(sorted(groups.items(), key=lambda item: str(item[0])))


def stable_since(record: Record) -> int:
    """The step from which on the number of skips in the normal cell no longer changed."""
    steps, skips = record["course"]["step"], record["course"]["skips_normal"]
    changes = [i for i in range(1, len(skips)) if skips[i] != skips[i - 1]]
    return steps[changes[-1]] if changes else steps[0]


def summed_chance(space: SearchSpace, cells: int) -> NDArray[np.float64]:
    """P(K skips in all) of so many normal cells derived from noise, each for itself."""
    total = np.ones(1)
    for _ in range(cells):
        total = np.convolve(total, chance_of_skips(space, "normal"))
    return total


def against_chance(space: SearchSpace, skips: Sequence[int]) -> float:
    """Exact two-sided p: how often noise gives a total that is no likelier than this one."""
    chance = summed_chance(space, len(skips))
    return float(min(1.0, chance[chance <= chance[sum(skips)] * (1 + 1e-9)].sum()))


def permutation_p(one: Sequence[float], other: Sequence[float]) -> float:
    """Exact two-sided p of a difference between means: every division of the values in two."""
    values = [*one, *other]
    observed = abs(np.mean(one) - np.mean(other))
    total, count, n = sum(values), 0, len(one)
    divisions = list(combinations(range(len(values)), n))
    for chosen in divisions:
        mine = math.fsum(values[i] for i in chosen)
        difference = abs(mine / n - (total - mine) / (len(values) - n))
        count += difference >= observed - 1e-12
    return count / len(divisions)


def bootstrap_interval(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """95 % of a difference between means, seeds drawn again with replacement, percentiles."""
    generator = np.random.default_rng(0)
    means = [
        generator.choice(np.asarray(side, float), (DRAWS, len(side))).mean(axis=1)
        for side in (one, other)
    ]
    low, high = np.percentile(means[0] - means[1], [2.5, 97.5])
    return float(low), float(high)


def compared(one: Sequence[float], other: Sequence[float]) -> str:
    """The difference of two arms in words, with its interval and whether it can be told."""
    if min(len(one), len(other)) < 2:
        return "one seed: nothing can be told"
    low, high = bootstrap_interval(one, other)
    p = permutation_p(one, other)
    words = "" if p < SIGNIFICANCE else ": not distinguishable"
    difference = np.mean(one) - np.mean(other)
    return f"{difference:+.2f} [{low:+.2f}, {high:+.2f}], p = {p:.3f}{words}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation over seeds; a single value alone."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def costs(records: Sequence[Record]) -> str:
    """What the records are of: a line on their number, cost, devices and commits."""
    hours = sum(record["wall_seconds"] for record in records) / 3600
    devices = sorted({record["device"]["name"] for record in records})
    commits = sorted({record["git"]["commit"][:7] for record in records})
    return (
        f"{len(records)} searches, {hours:.1f} hours of one thread in all, on "
        f"{', '.join(devices)}; commits {', '.join(commits)}.\n"
    )


def replaced(text: str, claim: str, results: str) -> str:
    """`text` with the claim's results between its two markers."""
    begin, end = f"<!-- results: {claim} -->\n", f"<!-- end: {claim} -->\n"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"{README.name}: no place for the results of {claim}: {begin}…{end}")
    return before + begin + results + end + after


def report(claim: str, folder: Path) -> None:
    """Table and pictures of the records in `folder`; the README's results if they are the claim's.

    A function of the records alone.
    """
    records = read_records(folder)
    if not records:
        raise ValueError(f"{folder / 'records.jsonl'}: no records yet; make {claim} makes some")
    module = import_module(f"{claim}.report")
    write_text(folder / "table.md", module.tables(records))
    module.draw(records, folder)
    if folder == HERE / claim:
        write_text(README, replaced(README.read_text(), claim, module.results(records)))
    sys.stdout.write(f"{claim}: {len(records)} records, {folder / 'table.md'}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    known = sorted(path.parent.name for path in HERE.glob("*/report.py"))
    parser = argparse.ArgumentParser(prog="evidence")
    actions = parser.add_subparsers(dest="action", required=True)
    collecting, reporting = (actions.add_parser(name) for name in ("collect", "report"))
    collecting.add_argument("claim", choices=known)
    collecting.add_argument("sweep", type=Path)
    reporting.add_argument("claims", nargs="*", metavar="claim", help=f"of {', '.join(known)}")
    for action in (collecting, reporting):
        action.add_argument("--folder", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.action == "collect":
            added = collect(given.folder or HERE / given.claim, given.sweep.iterdir())
            sys.stdout.write(f"{given.claim}: {added} finished runs in {given.sweep}\n")
            return
        for claim in given.claims or known:
            if claim not in known:
                raise ValueError(f"{claim}: no such claim; there are {', '.join(known)}")
            report(claim, given.folder or HERE / claim)
    except (ValueError, OSError) as error:
        sys.exit(f"evidence: {first_line(error)}")


if __name__ == "__main__":
    main()
