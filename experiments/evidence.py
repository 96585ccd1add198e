"""From a claim to its sweeps, from finished runs to records, and from records to what is found.

    python experiments/evidence.py run CLAIM --scale small   # search; collect; report
    python experiments/evidence.py collect CLAIM SWEEP...    # ended runs of sweeps, as records
    python experiments/evidence.py report [CLAIM...]         # tables, pictures, README's results
    python experiments/evidence.py repeat CLAIM LINE         # is a record the same again?

A claim is a folder here: `claim.py` says which sweeps answer it (its axes at each scale) and makes
`table.md` and pictures from `records.jsonl` and nothing else; a record is a run's summary.json and
what was read along the way. Full scale has the axes of small unless it names its own. With
`--folder`, records and what is made of them lie elsewhere, and the README is left alone.
"""

import argparse
import json
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from inference import Cells, cells_of

from mae_nas.checks import first_line
from mae_nas.cli.spelling import quoted
from mae_nas.keys import find, is_inside, leaves
from mae_nas.runs.files import write_json, write_text
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.listing import command_of
from mae_nas.runs.resume import FREE
from mae_nas.runs.tables import JsonLines, MetricsTable

Record = Mapping[str, Any]
HERE = Path(__file__).parent
SAME = frozenset(FREE) - {"trainer.max_steps"}
"""Keys that change no result."""
KNOWN = sorted(path.parent.name for path in HERE.glob("*/claim.py"))
REPEATED = ("final", "genotype", "entropy", "yardsticks", "course", "metrics", "test_top1")
"""What the same command gives again on the same computer, to the last bit; but for seconds."""
PLACES = ("root", "cache")
README = HERE.parent / "README.md"


def read_records(folder: Path) -> list[Record]:
    """The folder's records, in the file's order."""
    file = folder / "records.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


class Sweep(NamedTuple):
    """Of searches of `experiment`, or of networks that are trained, or pretrained and compared.

    Args:
        name: of its folder.
        overrides: axes among them.
        experiment: of a sweep of searches that is not called as the claim.
        command: `search`, `train` or `compare`.
    """

    name: str
    overrides: Sequence[str]
    experiment: str = ""
    command: str = "search"

    def words(self, claim: str, scale: str) -> list[str]:
        """Of its command line, but for where it runs."""
        if self.command != "search":
            return [self.command, *["-m"] * (self.command == "train"), *self.overrides]
        named = f"experiment={self.experiment or claim}"
        return ["search", "-m", f"scale={scale}", named, *self.overrides]


def collect(claim: str, folder: Path, runs: Iterable[Path]) -> int:
    """Add the ended runs among `runs` to the folder's records, and count them.

    Of two records of one search the first stays. ValueError, and nothing written, if they are no
    records of one claim.
    """
    module = import_module(f"{claim}.claim")
    extra: Callable[[Path], Mapping[str, Any]] = getattr(module, "extra", lambda _: {})
    records = {_identity(record): record for record in read_records(folder)}
    ended = [(run, record) for run in sorted(runs) if (record := _record(run)) is not None]
    for run, record in ended:
        if command_of(record["config"]) == "pretrain" and not (run / "probe.json").exists():
            continue
        if _identity(record) not in records:
            records[_identity(record)] = {**record, **extra(run)}
    if records:
        module.tables(list(records.values()))
    lines = [json.dumps(records[key]) + "\n" for key in sorted(records, key=str)]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "records.jsonl", "".join(lines))
    return len(ended)


def restore(records: Iterable[Record]) -> None:
    """Where a record's run is gone, a folder that says how it ended: its job has its result."""
    for record in records:
        [place] = [word for word in record["overrides"] if word.startswith("hydra.run.dir=")]
        path = Path(place.partition("=")[2].strip('"'))
        if path.is_absolute() or ".." in path.parts or path.exists():
            continue
        path.mkdir(parents=True)
        folder = RunFolder(path)
        folder.write_config(record["config"], record["overrides"])
        write_json(folder.summary, record)
        if command_of(record["config"]) == "pretrain":
            JsonLines(folder.readings).append(record["final"])
            write_json(path / "probe.json", record["probe"])
            write_json(path.parent / "plan.json", record["plan"])
            continue
        if is_training(record):
            JsonLines(folder.readings).append(record["final"])
            write_json(folder.genotype, record["genotype"])
            continue
        reading = {key: record["final"][key] for key in ("step", "held_out_loss")}
        reading |= {"verdict": record["verdict"], "skips": record["skip_counts"]}
        write_json(folder.genotype, {**record["genotype"], **reading})


def _identity(record: Record) -> tuple[object, ...]:
    """Which search it is, by all that may change its result."""
    return record["config_hash"], find(record["config"], "trainer.max_steps")


def _record(run: Path) -> Record | None:
    """A run's summary with its course; None unless it has come to its end.

    Without places on this computer, which change no result.
    """
    file = run / "summary.json"
    summary = json.loads(file.read_text()) if file.exists() else {}
    if summary.get("state") not in ("finished", "collapsed"):
        return None
    config = summary["config"]
    for places, key in ((summary.get("data"), "cache"), *((config.get("data"), k) for k in PLACES)):
        if places:
            places.pop(key, None)
    if config.get("genotype"):  # a file that others do not have, as its content
        given = f"genotype={quoted(config['genotype'])}"
        summary["overrides"] = [
            given if word.startswith("genotype=") else word for word in summary["overrides"]
        ]
    if command_of(config) == "pretrain":
        readings = JsonLines(run / "readings.jsonl").rows()
        course = {key: [row[key] for row in readings] for key in ("step", "held_out_loss")}
        return {**summary, "course": course, "metrics": {}}
    if is_training(summary):
        readings = JsonLines(run / "readings.jsonl").rows()
        course = {key: [row[key] for row in readings] for key in ("step", "epoch", "loss", "top1")}
        return {**summary, "course": course, "metrics": {}}
    readings = JsonLines(run / "genotypes.jsonl").rows()
    course = {
        **{key: [row[key] for row in readings] for key in ("step", "held_out_loss", "verdict")},
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
        if name.startswith(("grad_norm_alpha", "rms_", "step", "seconds"))
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
        values = (find(record["config"], key) for key in keys)
        place = tuple(tuple(value) if isinstance(value, list) else value for value in values)
        groups.setdefault(place, []).append(record)
    return dict(sorted(groups.items(), key=lambda item: [_order(value) for value in item[0]]))


def _order(value: object) -> tuple[float, str]:
    return (value, "") if isinstance(value, int | float) else (math.inf, str(value))


def stable_since(record: Record, name: str) -> int:
    """The step from which on an entry of the course no longer changed."""
    steps, values = record["course"]["step"], record["course"][name]
    changes = [i for i in range(1, len(values)) if values[i] != values[i - 1]]
    return steps[changes[-1]] if changes else steps[0]


def mean_course(
    records: Sequence[Record], table: str, name: str
) -> tuple[Sequence[int], np.ndarray]:
    """Steps, and the mean over runs of an entry of `course` or `metrics`, as far as all went."""
    rows = min(len(record[table]["step"]) for record in records)
    values = [record[table][name][:rows] for record in records]
    return records[0][table]["step"][:rows], np.mean(np.array(values, float), axis=0)


def is_alone(record: Record) -> bool:
    """Whether one given cell was trained, and nothing searched."""
    return find(record["config"], "relaxation._target_") == "mae_nas.relaxations.Fixed"


def is_training(record: Record) -> bool:
    """Whether a network was trained with labels, and nothing searched."""
    return command_of(record["config"]) == "train"


def losses_alone(records: Iterable[Record], searches: Sequence[Record]) -> list[float]:
    """Held-out losses of the different cells that searches found, each trained alone.

    A cell that two searches found was trained once, and counts once; one not trained, not at all.
    """
    losses = {cells_of(r["genotype"]): loss for r, loss in _losses(records) if is_alone(r)}
    found = dict.fromkeys(cells_of(search["genotype"]) for search in searches)
    return [losses[cells] for cells in found if cells in losses]


def _losses(records: Iterable[Record]) -> Iterator[tuple[Record, float]]:
    for record in records:
        yield record, record["final"]["held_out_loss"]


def skips_of(records: Iterable[Record]) -> list[int]:
    """Of the normal cell, in the records' order: by seed."""
    return [record["skip_counts"]["normal"] for record in records]


def losses_of(records: Iterable[Record]) -> list[float]:
    """Of held-out images at the end."""
    return [loss for _, loss in _losses(records)]


def axes_at(scale: str, axes: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """A claim's axes; those of small where a scale has none of its own."""
    return axes.get(scale, axes["small"])


SOME = "DARTS_V2 random:0"
GIVEN = """DARTS_V1 DARTS_V2 PC_DARTS_cifar PDARTS GDAS_V1 SNAS_mild RLNAS_cifar10
    UNNAS_IMAGENET_COL random:0 random:1 random:2 random:3 random:4 random:5 random:6 random:7
    random:8 random:9"""


def cells_found(*sweeps: Path, wanted: Callable[[Record], bool] = lambda _: True) -> Sequence[str]:
    """The different cells that the sweeps' ended and wanted runs found, as a command names them."""
    found: dict[Cells, str] = {}
    for folder in (run for sweep in sweeps for run in sorted(sweep.iterdir())):
        record = _record(folder)
        if record is not None and wanted(record):
            found.setdefault(cells_of(record["genotype"]), f'"{folder}"')
    return list(found.values())


def cells_alone(
    scale: str, *sweeps: Path, wanted: Callable[[Record], bool] = lambda _: True
) -> Sequence[str]:
    """Overrides that train each cell alone, all with one seed and under one mask.

    Those that the sweeps' ended and wanted runs found, published and random ones.
    """
    given = (SOME if scale == "smoke" else GIVEN).split()
    genotypes = ",".join([*cells_found(*sweeps, wanted=wanted), *given])
    return "seed=0", "space=s0", "relaxation=fixed", f"genotype={genotypes}"


def run(claim: str, scale: str, parallel: int, overrides: Sequence[str]) -> int:
    """Run the claim's sweeps one after the other and report their records; the exit code.

    Jobs whose result is there, or whose record is, are not run. After a sweep in which jobs failed
    the next one runs; after one that was stopped none does, and the same command goes on.
    """
    os.chdir(HERE.parent)  # relative paths stand in the runs' records
    module, folder = import_module(f"{claim}.claim"), Path("runs") / f"{claim}-{scale}"
    axes, whole = axes_at(scale, module.AXES), axes_at("full", module.AXES)
    missing = [axis for axis in whole if axis not in axes]
    left = [f"left_out={json.dumps(['of the axes ' + ' '.join(missing)])}"] if missing else []
    records = folder if scale == "smoke" else HERE / claim / ("full" if scale == "full" else "")
    restore(read_records(records))
    code = 0
    for sweep in module.sweeps(scale, folder):
        words = [*sweep.words(claim, scale), *left, f"hydra.launcher.parallel={parallel}"]
        words += [f"hydra.sweep.dir={folder / sweep.name}", *overrides]
        if sweep.command == "compare":
            words = [*sweep.words(claim, scale), f"output={folder / sweep.name}", *overrides]
        sys.stdout.write(f"mae-nas {shlex.join(words)}\n")
        sys.stdout.flush()
        ended, is_stopped = _start(words)
        if is_stopped or ended not in (0, 1):
            return ended or 75
        code = code or ended
    runs = [run for sweep in folder.iterdir() if sweep.is_dir() for run in sweep.iterdir()]
    collect(claim, records, runs)
    report(claim, records)
    return code


def _start(words: Sequence[str]) -> tuple[int, bool]:
    """Exit code of a sweep, and whether it was told to stop: it then ends in order."""
    told_to_stop = []

    def pass_on(*_: object) -> None:
        told_to_stop.append(True)
        sweep.terminate()

    with subprocess.Popen([sys.executable, "-m", "mae_nas", *words]) as sweep:
        before = signal.signal(signal.SIGTERM, pass_on)
        try:
            while True:
                try:
                    return sweep.wait(), bool(told_to_stop)
                except KeyboardInterrupt:  # which has reached it as well
                    told_to_stop.append(True)
        finally:
            signal.signal(signal.SIGTERM, before)


def repeat(record: Record, folder: Path) -> list[str]:
    """Run the command that a record names into `folder`; what then differs, a line each."""
    words = [word for word in record["overrides"] if not word.startswith(("hydra.", "resume="))]
    code, _ = _start([command_of(record["config"]), *words, f"hydra.run.dir={folder}"])
    again = _record(folder)
    if again is None:
        raise ValueError(f"the run did not come to its end, its exit code is {code}")
    differences = []
    for key in REPEATED:
        old, new = (dict(leaves(each.get(key))) for each in (record, again))
        differences += [
            f"{key}.{name}: {old.get(name)} in the record, now {new.get(name)}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name) and name != "seconds"
        ]
    return differences


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


def groups_alone(records: Iterable[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """Trainings of given cells, for `check_replicates`."""
    return grouped(filter(is_alone, records), "relaxation._target_", "genotype")


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
    module = import_module(f"{claim}.claim")
    write_text(folder / "table.md", module.tables(records))
    module.draw(records, folder)
    if folder.resolve() == (HERE / claim).resolve():
        write_text(README, replaced(README.read_text(), claim, module.results(records)))
    sys.stdout.write(f"{claim}: {len(records)} records, {folder / 'table.md'}\n")


def _run(given: argparse.Namespace) -> int:
    return run(given.claim, given.scale, given.parallel, given.overrides)


def _collect(given: argparse.Namespace) -> int:
    runs = [run for sweep in given.sweeps for run in sweep.iterdir()]
    ended = collect(given.claim, given.folder or HERE / given.claim, runs)
    sys.stdout.write(f"{given.claim}: {ended} ended runs in {' '.join(map(str, given.sweeps))}\n")
    return 0


def _report(given: argparse.Namespace) -> int:
    if unknown := [claim for claim in given.claims if claim not in KNOWN]:
        raise ValueError(f"{unknown[0]}: no such claim; there are {', '.join(KNOWN)}")
    for claim in given.claims or KNOWN:
        folders = [given.folder] if given.folder else [HERE / claim, HERE / claim / "full"]
        there = [folder for folder in folders if read_records(folder)]
        for folder in there or (folders[:1] if given.claims else []):
            report(claim, folder)
        if not there:
            sys.stdout.write(
                f"{claim}: no records yet; make {claim.replace('_', '-')} makes some\n"
            )
    return 0


def _repeat(given: argparse.Namespace) -> int:
    records = read_records(given.folder or HERE / given.claim)
    if not 0 < given.line <= len(records):
        raise ValueError(f"{given.claim}: records 1 to {len(records)}, not {given.line}")
    with TemporaryDirectory() as folder:
        differences = repeat(records[given.line - 1], Path(folder) / "again")
    sys.stdout.write("\n".join(differences or ["the same to the last bit"]) + "\n")
    return 1 if differences else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="evidence")
    actions = parser.add_subparsers(required=True)
    parsers = []
    for act in (_run, _collect, _repeat, _report):
        parsers.append(actions.add_parser(act.__name__[1:]))
        parsers[-1].set_defaults(act=act)
    running, collecting, repeating, reporting = parsers
    for action in (running, collecting, repeating):
        action.add_argument("claim", choices=KNOWN)
    running.add_argument("overrides", nargs="*", help="of every search, e.g. trainer.max_steps=9")
    running.add_argument("--scale", choices=("smoke", "small", "full"), default="smoke")
    running.add_argument("--parallel", type=int, default=1, help="jobs at once")
    collecting.add_argument("sweeps", type=Path, nargs="+", metavar="sweep")
    repeating.add_argument("line", type=int, help="the record's, from 1")
    reporting.add_argument("claims", nargs="*", metavar="claim", help=f"of {', '.join(KNOWN)}")
    for action in (collecting, repeating, reporting):
        action.add_argument("--folder", type=Path)
    given = parser.parse_args(arguments)
    try:
        sys.exit(given.act(given))
    except (ValueError, OSError) as error:
        sys.exit(f"evidence: {first_line(error)}")


if __name__ == "__main__":
    main()
