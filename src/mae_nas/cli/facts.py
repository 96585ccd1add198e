"""What a folder of images holds, and the search that we would start on it."""

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
from mae_nas.cli.spelling import quoted
from mae_nas.data import Folder, ImageStore
from mae_nas.data.duplicates import near_duplicates
from mae_nas.data.files import find_images
from mae_nas.data.splits import Split, group_images, split_images
from mae_nas.runs.folder import RunFolder

_FEW = 0.05  # of the images: fewer near duplicates than these are no reason to group by names
# Finest first where they agree: up to the last number of a name, up to the first, by folder.
_RULES = (r"^(.*?)[0-9]+[^0-9/]*\.[^.]*$", r"^(.*?[0-9]+)", "parent", "^([^/]*)/")
_TESTS = ("test", "val", "valid", "validation")
_LONG = 24 * 3600  # seconds of a search
_DEPTHS = {"uint8": "8 bits", "uint16": "16 bits", "float32": "float"}
Facts = dict[str, Any]


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
            "examples": [[store.files[i] for i in pair] for pair in near[:5]],
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
        "estimate": {**asdict(cost), "in_words": in_words(cost, steps)},
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
    if facts["estimate"]["seconds"] * facts["search"]["steps"] > _LONG:
        yield (
            "this is long on this computer: trainer.max_steps=500 gives a first look, from which "
            "resume=auto goes on; supernet.width=8 or a GPU make it shorter"
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
