"""The arguments of commands that are not configuration alone: a folder, options, overrides."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_nas.cli.spelling import suggest


@dataclass(frozen=True)
class Arguments:
    """What was given: folders in order, every option with its value, overrides as written."""

    folders: tuple[str, ...]
    options: Mapping[str, str]
    overrides: tuple[str, ...]


def read_arguments(
    command: str,
    arguments: Sequence[str],
    options: Mapping[str, str],
    *,
    folders: int = 0,
    overrides: bool = False,
) -> Arguments:
    """Sort the arguments of `mae-nas COMMAND`. What exists as a folder is one, `=` in it or not.

    Args:
        command: its name.
        arguments: as given.
        options: the default of each KEY=VALUE that is the command's own; `format` is text or json.
        folders: most that it takes.
        overrides: whether other KEY=VALUE are the configuration's.

    Raises:
        ValueError: of the first argument that is neither.
    """
    found, places, others = dict(options), [], []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in options:
            found[key] = value
        elif folders and argument and (not equals or Path(argument).is_dir()):
            places.append(argument)
        elif overrides and re.match(r"[+~\w.@/]+=|~", argument):
            others.append(argument)
        else:
            takes = [f"{key}=…" for key in options]
            takes = (["a folder"] if folders else []) + takes + (["KEY=VALUE"] if overrides else [])
            raise ValueError(
                f"{argument!r}: {command} takes {', '.join(takes)}{suggest(key, options)}"
            )
    if len(places) > folders:
        raise ValueError(f"{places[folders]}: {command} takes one folder")
    if found.get("format", "text") not in ("text", "json"):
        near = suggest(found["format"], ["text", "json"])
        raise ValueError(f"format={found['format']}: use text or json{near}")
    return Arguments(tuple(places), found, tuple(others))


def check_images(command: str, overrides: Sequence[str], options: Mapping[str, str]) -> None:
    """ValueError of the first word that names neither images nor an option; of no checkpoint."""
    for word in overrides:
        if not word.startswith(("data=", "data.")):
            near = suggest(word.partition("=")[0], options) or "; images are data=… data.root=…"
            raise ValueError(f"{word}: no such option of {command}{near}")
    if not options["checkpoint"]:
        raise ValueError("checkpoint: needed, e.g. checkpoint=runs/pretrain/2026-01-31_12-00-00")


def check_folder(key: str, folder: Path) -> None:
    """ValueError, naming KEY, where a file is in the way of making `folder`."""
    for place in (folder, *folder.parents):
        if place.exists():
            if not place.is_dir():
                raise ValueError(f"{key}: {place} is a file, not a folder")
            return


def whole_number(key: str, text: str) -> int:
    """KEY=TEXT as a whole number, 1 or more; ValueError in one line."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 10**9):
        raise ValueError(f"{key}={text}: must be a whole number, 1 or more")
    return int(text)


def decimal_number(key: str, text: str) -> float:
    """KEY=TEXT as a positive number; ValueError in one line."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(f"{key}={text}: must be a number above 0")
    return value


def seed_number(text: str) -> int:
    """seed=TEXT as a whole number, 0 or more; ValueError in one line."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(f"seed={text[:100]}: must be a whole number below a billion")
    return int(text)
