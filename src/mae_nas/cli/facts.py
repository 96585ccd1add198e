"""What a folder of images holds, and the search that we would start on it."""

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from mae_nas.cli.assemble import progress
from mae_nas.cli.build import build
from mae_nas.cli.check import check
from mae_nas.cli.compose import Composed, compose
from mae_nas.cli.preflight import fitting, in_words
from mae_nas.cli.run import Config
from mae_nas.cli.search import SearchRun, prepare
from mae_nas.cli.spelling import quoted
from mae_nas.data import Folder, ImageStore
from mae_nas.data.duplicates import near_duplicates
from mae_nas.data.files import Found, find_images
from mae_nas.data.splits import Split, group_images, split_images
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.trainer import TrainerSettings

_FEW = 0.05  # of the images: fewer near duplicates than these are no reason to group by names
# Finest first where they agree: up to the last number of a name, up to the first, by folder.
_RULES = (r"^(.*?)[0-9]+[^0-9/]*\.[^.]*$", r"^(.*?[0-9]+)", "parent", "^([^/]*)/")
_TESTS = ("test", "val", "valid", "validation")
_LONG = 24 * 3600  # seconds of a search
_FIRST_LOOK, _FEWEST_STEPS = 900, 20  # seconds, steps
_DEPTHS = {"uint8": "8 bits", "uint16": "16 bits", "float32": "float"}
Facts = dict[str, Any]


@dataclass(frozen=True)
class _Seen:
    """A folder, as it is."""

    root: Path
    given: list[str]  # arguments of a search on it, nothing chosen
    config: Config
    source: Folder
    found: Found
    store: ImageStore
    near: NDArray[np.int64]  # (pairs, 2), near duplicates

    @property
    def alike(self) -> int:
        """Images that have a near duplicate."""
        return len(np.unique(self.near))

    @property
    def has_sequences(self) -> bool:
        return self.alike > _FEW * len(self.store)


@dataclass(frozen=True)
class _Chosen:
    """The search that we would start."""

    run: SearchRun  # its step measured
    arguments: list[str]
    group: str
    groups: NDArray[np.int64]  # of each image


def gather(folder: Path, overrides: Sequence[str]) -> Facts:
    """All facts, in JSON's types: of the files, and of the search that the command starts."""
    console = Console(stderr=True)
    seen = _look(folder.expanduser().absolute(), overrides, console)
    facts = _describe(seen, _choose(seen, console))
    return facts | {"notes": list(_notes(facts))}


def _look(root: Path, overrides: Sequence[str], console: Console) -> _Seen:
    found = find_images(root)
    given = ["data=folder", f"data.root={quoted(str(root))}", *overrides]
    config = _checked(given).config
    source = build(Folder, config["data"], {}, "data")
    if source.root != str(root):
        raise ValueError(f"data.root: it is the folder that is inspected, {root}; leave it out")
    with progress(console, "reading images") as on_progress:
        store = source.load(on_progress)
    with progress(console, "looking for near duplicates") as on_progress:
        near = near_duplicates(store, on_progress)
    return _Seen(root, given, config, source, found, store, near)


def _choose(seen: _Seen, console: Console) -> _Chosen:
    """As the search itself will: what is printed is what it uses, and the command works."""
    source, arguments = seen.source, list(seen.given)
    rule, split, groups = _choose_group(seen)
    if rule != source.group:
        arguments.append(f"data.group={quoted(rule)}")
    room = min(len(split.weights), len(split.architecture))
    if source.batch_size > room:
        parts = build(TrainerSettings, seen.config["trainer"], {}, "trainer").parts
        each = max(1, room // parts)
        arguments.append(f"data.batch_size={parts << (each.bit_length() - 1)}")
    composed = _checked(arguments)
    run = prepare(composed.config, RunFolder(composed.run_dir), console, seen.store)
    with progress(console, "measuring a step"):
        fitted = fitting(run)
    if fitted.settings.accumulate > run.settings.accumulate:
        arguments.append(f"trainer.accumulate={fitted.settings.accumulate}")
        _checked(arguments)
    return _Chosen(fitted, arguments, rule, groups)


def _checked(arguments: list[str]) -> Composed:
    composed = compose(arguments)
    check(composed.config)
    return composed


def _describe(seen: _Seen, chosen: _Chosen) -> Facts:
    store, near, headers = seen.store, seen.near, seen.store.headers
    folders = Counter(name.rpartition("/")[0] for name in store.files)
    return {
        "folder": str(seen.root),
        "images": len(store),
        "bytes": sum((seen.root / name).stat().st_size for name in store.files),
        "broken": [{"file": name, "reason": reason} for name, reason in store.skipped],
        "other_files": dict(seen.found.others.most_common()),
        "links": seen.found.links,
        "formats": _counts(header.format for header in headers),
        "modes": _counts(header.mode for header in headers),
        "depths": _counts(_DEPTHS[header.dtype] for header in headers),
        "channels": _counts(str(header.channels) for header in headers),
        "short_sides": _spread([min(header.height, header.width) for header in headers]),
        "histogram": _histogram(min(header.height, header.width) for header in headers),
        "aspects": _spread([round(header.width / header.height, 3) for header in headers]),
        "exact_duplicates": _exact_duplicates(store),
        "near_duplicates": {
            "images": seen.alike,
            "pairs": len(near),
            "divided": _divided(near, chosen.groups),
            "named": [[store.files[i] for i in pair] for pair in near],
        },
        "folders": dict(folders),
        "folders_are": _kind(folders, seen.has_sequences),
        **_describe_search(chosen),
    }


def _describe_search(chosen: _Chosen) -> Facts:
    run, steps = chosen.run, chosen.run.last_step
    used, cost = run.data.describe(), run.cost
    del used["images"], used["skipped_files"]
    assert cost is not None
    return {
        "search": {
            **used,
            "stem": run.parts.plan.stem,
            "patch_size": run.parts.masking.patch_size,
            "batch_size": run.data.batch_size,
            "group": chosen.group,
            "groups": int(chosen.groups.max()) + 1,
            "workers": run.data.worker_count,
            "epochs": run.module.epochs,
            "steps": steps,
            "accumulate": run.settings.accumulate,
        },
        "estimate": {**asdict(cost), "in_words": in_words(cost, steps)},
        "command": shlex.join(["mae-nas", "search", *chosen.arguments]),
    }


def _choose_group(seen: _Seen) -> tuple[str, Split, NDArray[np.int64]]:
    """The source's rule, or the one that leaves fewer near duplicates in different groups."""
    source, store, near = seen.source, seen.store, seen.near
    rules = _RULES if seen.has_sequences and source.group == "none" else ()
    options = []
    for rule in (source.group, *rules):
        try:
            split = split_images(replace(source, group=rule), store, seen.config["seed"])
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
    seconds = facts["estimate"]["seconds"]
    if seconds * facts["search"]["steps"] > _LONG:
        steps = max(_FEWEST_STEPS, int(_FIRST_LOOK / seconds))
        yield (
            f"this is long on this computer: trainer.max_steps={steps} gives a first look in "
            f"{timedelta(seconds=round(steps * seconds))}, from which resume=auto goes on; fewer "
            "pixels (data.side), a narrower supernet (supernet.width) or a GPU make it shorter"
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
