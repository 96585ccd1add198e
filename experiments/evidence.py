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
from fractions import Fraction
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mae_nas.checks import first_line
from mae_nas.keys import find, is_inside, leaves
from mae_nas.runs.files import write_text
from mae_nas.runs.resume import FREE
from mae_nas.runs.tables import JsonLines, MetricsTable
from mae_nas.spaces import SearchSpace

Record = Mapping[str, Any]
HERE = Path(__file__).parent
SIGNIFICANCE = 0.05
SAME = frozenset(FREE) - {"trainer.max_steps"}
"""Keys that change no result."""
README = HERE.parent / "README.md"


def read_records(folder: Path) -> list[Record]:
    """The folder's records, in the file's order."""
    file = folder / "records.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def collect(folder: Path, runs: Iterable[Path]) -> int:
    """Add the ended runs among `runs` to the folder's records, and count them.

    Of two records of one search the first stays.
    """
    found = [record for run in sorted(runs) if (record := _record(run)) is not None]
    records: dict[tuple[object, ...], Record] = {}
    for record in (*read_records(folder), *found):
        records.setdefault(_identity(record), record)
    lines = [json.dumps(records[key]) + "\n" for key in sorted(records, key=str)]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "records.jsonl", "".join(lines))
    return len(found)


def _identity(record: Record) -> tuple[object, ...]:
    """Which search it is, by all that may change its result."""
    return record["config_hash"], find(record["config"], "trainer.max_steps")


def _record(run: Path) -> Record | None:
    """A run's summary with its course; None unless it has come to its end."""
    file = run / "summary.json"
    summary = json.loads(file.read_text()) if file.exists() else {}
    if summary.get("state") not in ("finished", "collapsed"):
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
    names = [
        name
        for name in (rows[0] if rows else ())
        if name.startswith(("grad_norm_alpha", "rms_", "step"))
    ]
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


def chance_of_a_skip(space: SearchSpace) -> Fraction:
    """That a kept edge of the normal cell is a skip, where noise α are derived.

    Exact: an edge is kept for the size of its largest weight, which says nothing of whose it is, so
    that each candidate but `none` is as likely and kept edges are independent. For spaces in which
    all edges have the same candidates.
    """
    skips, zeros = space.flags("normal", "is_skip"), space.flags("normal", "is_zero")
    shares = {
        Fraction(sum(skip), len(zero) - sum(zero)) for skip, zero in zip(skips, zeros, strict=True)
    }
    if len(shares) > 1:
        raise ValueError(f"{type(space).__name__}: its edges differ in their candidates")
    return shares.pop()


def against_chance(space: SearchSpace, skips: Sequence[int], edges: int = 8) -> float:
    """Exact two-sided binomial p: a total of skips that is no likelier than this one, by noise."""
    p, kept = chance_of_a_skip(space), edges * len(skips)
    likelihood = [math.comb(kept, k) * p**k * (1 - p) ** (kept - k) for k in range(kept + 1)]
    return float(sum(each for each in likelihood if each <= likelihood[sum(skips)]))


def permutation_p(one: Sequence[float], other: Sequence[float]) -> float:
    """Exact two-sided p of a difference between means: every division of the values in two."""
    values, n = [*one, *other], len(one)
    total = math.fsum(values)

    def difference(mine: Sequence[float]) -> float:
        return abs(math.fsum(mine) / n - (total - math.fsum(mine)) / (len(values) - n))

    divisions = list(combinations(values, n))
    return sum(difference(mine) >= difference(one) - 1e-12 for mine in divisions) / len(divisions)


def permutation_interval(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """The shifts between two arms that an exact permutation test does not refute at 2.5 % a side.

    Exchanging equally many values, A of one arm for B of the other, lowers the difference exactly
    if mean(A) − mean(B) exceeds the shift: so the ends are quantiles of those differences.
    """
    shifts = sorted(
        float(np.mean(mine) - np.mean(others))
        for count in range(1, min(len(one), len(other)) + 1)
        for mine in combinations(one, count)
        for others in combinations(other, count)
    )
    rank = int(SIGNIFICANCE / 2 * (len(shifts) + 1))
    return (shifts[rank - 1], shifts[-rank]) if rank else (-math.inf, math.inf)


def told(p: float) -> str:
    """A p to be read."""
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def compared(one: Sequence[float], other: Sequence[float]) -> str:
    """The difference of two arms in words, with its interval and whether it can be told."""
    difference = f"{np.mean(one) - np.mean(other):+.2f}"
    if 2 / math.comb(len(one) + len(other), len(one)) > SIGNIFICANCE:
        return f"{difference}: too few seeds to tell"
    low, high = permutation_interval(one, other)
    p = permutation_p(one, other)
    words = "" if p < SIGNIFICANCE else ": not distinguishable"
    return f"{difference} [{low:+.2f}, {high:+.2f}], p = {told(p)}{words}"


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
    devices = {f"{r['device']['name']} ({r['device'].get('threads')} threads)" for r in records}
    commits = {
        str(r["git"]["commit"])[:7] + (" (changed)" if r["git"].get("dirty") else "")
        for r in records
    }
    return (
        f"{len(records)} searches, {hours:.1f} hours in all, on {', '.join(sorted(devices))}; "
        f"commits {', '.join(sorted(commits))}.\n"
    )


def check_replicates(
    groups: Mapping[tuple[Any, ...], Sequence[Record]], axes: Sequence[str]
) -> None:
    """ValueError unless records differ in the axes alone, and within a group in the seed alone."""
    rest = set()
    for place, same in groups.items():
        seeds = [record["seed"] for record in same]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{' '.join(map(str, place))}: two records of one seed, {seeds}")
        for record in same:
            pairs = leaves(record["config"])
            rest.add(
                str([pair for pair in pairs if not is_inside(pair[0], [*SAME, *axes, "seed"])])
            )
    if len(rest) > 1:
        raise ValueError(f"records of {len(rest)} protocols: keep one in a folder of its own")


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
    if folder.resolve() == (HERE / claim).resolve():
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
            sys.stdout.write(f"{given.claim}: {added} ended runs in {given.sweep}\n")
            return
        for claim in given.claims or [c for c in known if (HERE / c / "records.jsonl").exists()]:
            if claim not in known:
                raise ValueError(f"{claim}: no such claim; there are {', '.join(known)}")
            report(claim, given.folder or HERE / claim)
    except (ValueError, OSError) as error:
        sys.exit(f"evidence: {first_line(error)}")


if __name__ == "__main__":
    main()
