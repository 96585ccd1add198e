"""`mae-nas inspect`: a page about a folder of images, and the command for a search on it."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mae_nas.cli.arguments import read_arguments
from mae_nas.runs.listing import printable

USAGE = """\
mae-nas inspect FOLDER [format=text|json] [KEY=VALUE ...]

Say what a folder of images holds (files, formats, sizes, what cannot be read, duplicates, folders
that look like classes), and what a search on it would use, as a command to paste.
  format      text: one page | json: the same, and all names
  KEY=VALUE   of mae-nas search, to see what they change: data.side=64 data.group=parent
Decoded images are kept for the search, where data.cache says.
"""

_SHOWN, _LISTED, _BAR = 5, 10, 40


def inspect(arguments: Sequence[str]) -> str:
    """A page of text, or JSON.

    Raises:
        ValueError: of arguments, or of a folder that cannot be searched, a line per mistake.
        OSError: the folder cannot be listed, or the cache cannot be written.
    """
    given = read_arguments("inspect", arguments, {"format": "text"}, folders=1, overrides=True)
    if not given.folders:
        raise ValueError("inspect takes a folder (see mae-nas inspect --help)")
    folder = Path(given.folders[0])
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")

    from mae_nas.cli.facts import gather  # torch, seconds

    facts = gather(folder, given.overrides)
    if given.options["format"] == "json":
        return json.dumps(facts, indent=1, ensure_ascii=False)
    return "\n".join(_page(facts))


def _page(facts: Mapping[str, Any]) -> Iterator[str]:
    search, near, exact = facts["search"], facts["near_duplicates"], facts["exact_duplicates"]

    def row(name: str, value: str) -> str:
        return f"  {name:<17}{printable(value)}".rstrip()

    def listed(counts: Mapping[str, int]) -> str:
        shown = [f"{count:,} × {name or '.'}" for name, count in list(counts.items())[:_LISTED]]
        more = [f"and {len(counts) - _LISTED:,} more"] if len(counts) > _LISTED else []
        return ", ".join([*shown, *more]) or "none"

    def first(lines: Sequence[str]) -> Iterator[str]:
        yield from (row("", line) for line in lines[:_SHOWN])
        if len(lines) > _SHOWN:
            yield row("", f"and {len(lines) - _SHOWN:,} more (format=json names all)")

    def spread(values: Mapping[str, float]) -> str:
        return "{least:g} to {most:g}, median {median:g}".format(**values)

    yield facts["folder"]
    yield row("images", f"{facts['images']:,}, {facts['bytes'] / 1e6:,.1f} MB")
    yield row("not readable", f"{len(facts['broken']):,}")
    yield from first([f"{entry['file']}: {entry['reason']}" for entry in facts["broken"]])
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
    yield from first([" = ".join(_some(names)) for names in exact])
    yield row("near duplicates", f"{near['images']:,} images in {near['pairs']:,} pairs")
    yield from first([" ~ ".join(pair) for pair in near["named"]])
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
    where = "held in memory" if search["resident"] else "read from disk"
    yield row(
        "batch", "{batch_size} images, {workers} loader processes".format(**search) + f", {where}"
    )
    yield row("length", "{epochs:,} epochs, {steps:,} steps".format(**search))
    yield row("on this computer", facts["estimate"]["in_words"])
    yield ""
    yield facts["command"]
    yield from (f"note: {note}" for note in facts["notes"])


def _some(names: Sequence[str]) -> list[str]:
    more = [f"{len(names) - _SHOWN:,} more"] if len(names) > _SHOWN else []
    return [*names[:_SHOWN], *more]
