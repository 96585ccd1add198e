"""`mae-nas inspect`: what a folder of images holds, and the search that we would start on it."""

import json
import math
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from mae_nas.cli.assemble import prepare, progress
from mae_nas.cli.build import build
from mae_nas.cli.check import check
from mae_nas.cli.compose import compose
from mae_nas.cli.preflight import fitting, in_words
from mae_nas.cli.spelling import quoted, suggest
from mae_nas.data import Folder, ImageStore
from mae_nas.data.duplicates import near_duplicates
from mae_nas.data.files import find_images
from mae_nas.data.splits import Split, group_images, split_images
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.measure import StepCost

_FEW = 0.05  # of the images: fewer near duplicates than these are no reason to group by names
# Finest first where they agree: up to the last number of a name, up to the first, by folder.
_RULES = (r"^(.*?)[0-9]+[^0-9/]*\.[^.]*$", r"^(.*?[0-9]+)", "parent", "^([^/]*)/")
_TESTS = ("test", "val", "valid", "validation")
_SHOWN, _LISTED, _BAR = 5, 10, 40
_DEPTHS = {"uint8": "8 bits", "uint16": "16 bits", "float32": "float"}
Facts = dict[str, Any]


def inspect(arguments: Sequence[str]) -> str:
    """A page of text, or JSON.

    Raises:
        ValueError: of arguments, or of a folder that cannot be searched, a line per mistake.
        OSError: the folder cannot be listed, or the cache cannot be written.
    """
    shaped = [argument for argument in arguments if re.match(r"[+~\w.@/]+=", argument)]
    pairs = [argument for argument in shaped if not Path(argument).is_dir()]
    folders = [argument for argument in arguments if argument not in pairs]
    if len(folders) != 1 or not folders[0]:
        raise ValueError("inspect takes one folder and KEY=VALUE … (see mae-nas inspect --help)")
    shapes = [pair for pair in pairs if pair.startswith("format=")]
    shape = shapes[-1].partition("=")[2] if shapes else "text"
    if shape not in ("text", "json"):
        raise ValueError(f"format={shape}: use text or json{suggest(shape, ['text', 'json'])}")
    facts = gather(Path(folders[0]), [pair for pair in pairs if pair not in shapes])
    if shape == "json":
        return json.dumps(facts, indent=1, ensure_ascii=False)
    return "\n".join(_page(facts))


def gather(folder: Path, overrides: Sequence[str]) -> Facts:
    """All facts, in JSON's types: of the files, and of the search that the command starts."""
    root = folder.expanduser().absolute()
    found = find_images(root)
    chosen = ["data=folder", f"data.root={quoted(str(root))}", *overrides]
    config = compose(chosen).config
    check(config)
    source = build(Folder, config["data"], {}, "data")
    if source.root != str(root):
        raise ValueError(f"data.root: it is the folder that is inspected, {root}; leave it out")
    console = Console(stderr=True)
    with progress(console, "reading images") as on_progress:
        store = source.load(on_progress)
    with progress(console, "looking for near duplicates") as on_progress:
        near = near_duplicates(store, on_progress)
    alike = len(np.unique(near))
    has_sequences = alike > _FEW * len(store)

    rules = _RULES if has_sequences and source.group == "none" else ()
    rule, split, groups = _choose_group(source, store, near, config["seed"], rules)
    if rule != source.group:
        chosen.append(f"data.group={quoted(rule)}")
    room = min(len(split.weights), len(split.architecture))
    if source.batch_size > room:
        chosen.append(f"data.batch_size={1 << (room.bit_length() - 1)}")
    # As the search itself will: what is printed is what it uses, and the command is known to work.
    composed = compose(chosen)
    run = prepare(composed.config, RunFolder(composed.run_dir), console)

    with progress(console, "measuring a step"):
        fitted = fitting(run)
    cost, accumulate = fitted.cost, fitted.settings.accumulate
    assert cost is not None
    if accumulate > run.settings.accumulate:
        chosen.append(f"trainer.accumulate={accumulate}")
        check(compose(chosen).config)

    steps = run.last_step
    headers, used = store.headers, run.data.describe()
    folders = Counter(name.rpartition("/")[0] for name in store.files)
    facts: Facts = {
        "folder": str(root),
        "images": used.pop("images"),
        "bytes": sum((root / name).stat().st_size for name in store.files),
        "broken": used.pop("skipped_files"),
        "other_files": dict(found.others.most_common()),
        "links": found.links,
        "formats": _counts(header.format for header in headers),
        "modes": _counts(header.mode for header in headers),
        "depths": _counts(_DEPTHS[header.dtype] for header in headers),
        "channels": _counts(str(header.channels) for header in headers),
        "short_sides": _spread([min(header.height, header.width) for header in headers]),
        "histogram": _histogram(min(header.height, header.width) for header in headers),
        "aspects": _spread([round(header.width / header.height, 3) for header in headers]),
        "exact_duplicates": _exact_duplicates(store),
        "near_duplicates": {
            "images": alike,
            "pairs": len(near),
            "divided": _divided(near, groups),
            "examples": [[store.files[i] for i in pair] for pair in near[:_SHOWN]],
        },
        "folders": dict(folders),
        "folders_are": _kind(folders, has_sequences),
        "search": {
            **used,
            "stem": run.parts.plan.stem,
            "patch_size": run.parts.masking.patch_size,
            "batch_size": run.data.batch_size,
            "group": rule,
            "groups": int(groups.max()) + 1,
            "workers": run.data.worker_count,
            "epochs": run.module.epochs,
            "steps": steps,
            "accumulate": accumulate,
        },
        "estimate": asdict(cost),
        "command": shlex.join(["mae-nas", "search", *chosen]),
    }
    return facts | {"notes": list(_notes(facts))}


def _choose_group(
    source: Folder, store: ImageStore, near: NDArray[np.int64], seed: int, rules: Sequence[str]
) -> tuple[str, Split, NDArray[np.int64]]:
    """The source's rule, or the one that leaves fewer near duplicates in different groups."""
    options = []
    for rule in (source.group, *rules):
        try:
            split = split_images(replace(source, group=rule), store, seed)
        except ValueError:  # no name is of this kind, or too few groups
            if rule == source.group:
                raise
            continue
        options.append((rule, split, group_images(store.files, rule, store.digests)))
    # One in a hundred may be an error of ours; among equals, the more groups the better.
    return min(options, key=lambda o: (max(_divided(near, o[2]), len(near) // 100), -o[2].max()))


def _divided(near: NDArray[np.int64], groups: NDArray[np.int64]) -> int:
    return int((groups[near[:, 0]] != groups[near[:, 1]]).sum())


def _exact_duplicates(store: ImageStore) -> list[list[str]]:
    same: defaultdict[bytes, list[str]] = defaultdict(list)
    for name, digest in zip(store.files, store.digests, strict=True):
        same[digest.tobytes()].append(name)
    return [names for names in same.values() if len(names) > 1]


def _kind(folders: Mapping[str, int], has_sequences: bool) -> str | None:
    """What the folders that hold images look like, if each holds several and none lies outside."""
    if len(folders) < 2 or "" in folders or min(folders.values()) < 2:
        return None
    return "sequences" if has_sequences else "classes"


def _notes(facts: Facts) -> Iterator[str]:
    near, group = facts["near_duplicates"], facts["search"]["group"]
    if near["divided"] > near["pairs"] / 10 and near["images"] > _FEW * facts["images"]:
        yield (
            f"with data.group={group}, {near['divided']:,} of {near['pairs']:,} pairs of near "
            "duplicates may be divided by the split: put what belongs together into a folder of "
            "its own and use data.group=parent, or name it alike and give a regular expression"
        )
    tops = {name.partition("/")[0] for name in facts["folders"]}
    if len(tops) > 1 and (tests := sorted(tops & set(_TESTS))):
        yield f"{', '.join(tests)}: to leave out what is for testing, inspect one of the others"


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"least": min(values), "median": median(values), "most": max(values)}


def _histogram(sides: Iterable[int]) -> dict[str, int]:
    """How many lie within each octave, from the least to the most, without gaps."""
    octaves = Counter(side.bit_length() - 1 for side in sides)
    return {
        f"{1 << octave}-{(2 << octave) - 1}": octaves[octave]
        for octave in range(min(octaves), max(octaves) + 1)
    }


def _page(facts: Facts) -> Iterator[str]:
    search, near, exact = facts["search"], facts["near_duplicates"], facts["exact_duplicates"]

    def row(name: str, value: str) -> str:
        return f"  {name:<17}{value}".rstrip()

    def listed(counts: Mapping[str, int]) -> str:
        shown = [f"{count:,} × {name or '.'}" for name, count in list(counts.items())[:_LISTED]]
        more = [f"and {len(counts) - _LISTED:,} more"] if len(counts) > _LISTED else []
        return ", ".join([*shown, *more]) or "none"

    def spread(values: Mapping[str, float]) -> str:
        return "{least:g} to {most:g}, median {median:g}".format(**values)

    yield facts["folder"]
    yield row("images", f"{facts['images']:,}, {facts['bytes'] / 1e6:,.1f} MB")
    yield row("not readable", f"{len(facts['broken']):,}")
    yield from (row("", f"{x['file']}: {x['reason']}") for x in facts["broken"][:_SHOWN])
    yield row("other files", listed(facts["other_files"]))
    yield row("links", f"{facts['links']:,}")
    for name in ("formats", "modes", "depths", "channels"):
        yield row(name, listed(facts[name]))
    yield row("short side", f"{spread(facts['short_sides'])} pixels")
    highest = max(facts["histogram"].values())
    for octave, count in facts["histogram"].items():
        bar = "#" * math.ceil(_BAR * count / highest)
        yield row("", f"{octave:>13} {bar} {count:,}")
    yield row("width / height", spread(facts["aspects"]))
    copies = sum(map(len, exact)) - len(exact)
    yield row("exact duplicates", f"{copies:,} (same bytes; they always share a side of the split)")
    yield from (row("", " = ".join(names[:_SHOWN])) for names in exact[:_SHOWN])
    yield row("near duplicates", f"{near['images']:,} images in {near['pairs']:,} pairs")
    yield from (row("", " ~ ".join(pair)) for pair in near["examples"])
    kind = f", like {facts['folders_are']}" if facts["folders_are"] else ""
    yield row("folders", f"{len(facts['folders']):,}{kind}: {listed(facts['folders'])}")
    yield ""
    yield "A search on them would use"
    yield row(
        "images",
        "{weights:,} for weights, {architecture:,} for architecture, {held_out:,} held out".format(
            **search
        ),
    )
    group = "{groups:,} by data.group={group}".format(**search)
    yield row("split groups", f"{group}; {near['divided']:,} near duplicates divided")
    yield row("side", "{side} pixels, {channels} channels, {dtype}".format(**search))
    yield row("stem", "{stem}, patches of {patch_size} pixels".format(**search))
    where = "kept in memory" if search["resident"] else "read from disk"
    yield row(
        "batch", "{batch_size} images, {workers} loader processes".format(**search) + f", {where}"
    )
    yield row("length", "{epochs:,} epochs, {steps:,} steps".format(**search))
    yield row("on this computer", in_words(StepCost(**facts["estimate"]), search["steps"]))
    yield ""
    yield facts["command"]
    yield from (f"note: {note}" for note in facts["notes"])
