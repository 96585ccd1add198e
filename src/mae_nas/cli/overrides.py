"""Overrides judged one by one, so that one mistake does not hide the next."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from mae_nas.cli.library import Library, unresolved
from mae_nas.cli.spelling import suggest
from mae_nas.keys import ABSENT, find, is_inside, leaves

OPTIONAL = ("experiment", "debug")  # groups that may be null


@dataclass
class Judged:
    """What is left to compose, and a line for each override that is not.

    `touched` are the keys and groups that the accepted overrides set, "" standing for everything.
    """

    accepted: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    targets: set[str] = field(default_factory=set)


def judge(texts: list[str], library: Library) -> Judged:
    """Split `texts` into what can be composed and lines about what cannot."""
    judged = Judged()
    overrides = list(_parse(texts, judged.problems))
    groups = library.groups()
    for override in overrides:
        if override.key_or_group in groups:
            _judge_group(override, groups[override.key_or_group], judged)
    try:
        tree = library.compose(judged.accepted)
    except ValueError as error:
        # E.g. a broken file of the user's: the rest is still worth checking, on the defaults.
        judged.problems.append(str(error))
        judged.accepted.clear()
        tree = library.compose([])
    values = [override for override in overrides if override.key_or_group not in groups]
    # Nodes whose class is the user's own: its constructor, not our YAML, knows the keys.
    free = {str(k) for k, choice in tree.hydra.runtime.choices.items() if choice == "custom"}
    free |= {o.key_or_group.removesuffix("._target_") for o in values if _names_class(o)}
    plain = unresolved(tree)
    for override in values:
        _judge_value(override, plain, free, judged)
    return judged


def _parse(texts: list[str], problems: list[str]) -> Iterator[Override]:
    parser = OverridesParser.create()
    for text in texts:
        try:
            override = parser.parse_override(text)
        except HydraException:
            hint = "a value with special characters needs quotes, e.g. 'data.root=\"/my (images)\"'"
            problems.append(f"{text}: cannot be read as key=value; {hint}")
            continue
        key = override.key_or_group
        if override.package is not None:
            problems.append(f"{text}: packages (@) are not used here; write {key}=…")
        elif override.is_sweep_override():
            problems.append(
                f"{text}: one value at a time (sweeps are not available in this version); "
                f"a list is written {key}=[a,b], text with commas '{key}=\"a,b\"'"
            )
        else:
            yield override


def _judge_group(override: Override, options: list[str], judged: Judged) -> None:
    group, value = override.key_or_group, override.value()
    option, listed = "null" if value is None else str(value), ", ".join(options)
    if option in options or (value is None and group in OPTIONAL):
        # As with values, the last one of a group wins; Hydra itself would refuse the second.
        others = [text for text in judged.accepted if not text.startswith(f"{group}=")]
        judged.accepted = others + ([] if value is None else [f"{group}={option}"])
        judged.touched.append("" if group in OPTIONAL else group)
    elif isinstance(value, dict | list):
        judged.problems.append(f"{group}: a group takes one name of {listed}")
    else:
        near = suggest(option, options)
        judged.problems.append(f"{group}={option}: no such option{near} ({listed})")


def _names_class(override: Override) -> bool:
    return override.key_or_group.endswith("._target_")


def _judge_value(
    override: Override, tree: Mapping[str, Any], free: set[str], judged: Judged
) -> None:
    text, key, value = str(override.input_line), override.key_or_group, override.value()
    if override.is_delete() and find(tree, key) is not ABSENT:
        # What a class that replaces ours does not take; what it needs is checked later.
        judged.accepted.append(text)
        judged.touched.append(key)
        return
    problems = list(_value_problems(override, tree, free))
    if problems:
        judged.problems += problems
        return
    added = override.is_add() or override.is_force_add()
    new = find(tree, key) is ABSENT or (isinstance(value, dict) and (added or is_inside(key, free)))
    judged.accepted.append("++" + text.lstrip("+") if new else text)
    judged.touched.append(key)
    if _names_class(override):
        judged.targets.add(str(value))


def _value_problems(override: Override, tree: Mapping[str, Any], free: set[str]) -> Iterator[str]:
    key, old, value = override.key_or_group, find(tree, override.key_or_group), override.value()
    added = override.is_add() or override.is_force_add()
    unknown = [
        leaf
        for leaf, _ in leaves(value, key)
        if find(tree, leaf) is ABSENT
        # A constructor may know the key (checked later): of the user's own class, or with `+`.
        and not is_inside(leaf, free)
        and not (added and find(tree, f"{leaf.rpartition('.')[0]}._target_") is not ABSENT)
    ]
    if unknown:
        is_hydras = key.startswith("hydra")
        keys = [name for name, _ in leaves(tree) if name.startswith("hydra.") == is_hydras]
        names = {*keys, *(name.rpartition(".")[0] for name in keys)} - {""}
        yield from (f"{leaf}: no such key{suggest(leaf, names)}" for leaf in unknown)
    elif override.is_add() and old is not ABSENT and not isinstance(old, dict):
        yield f"+{key}: the key exists; write {key}=…"
    elif isinstance(old, dict) and old and not isinstance(value, dict):
        inside = ", ".join(f"{key}.{name}" for name in old if name != "_target_")
        yield f"{key}: a section, not a value; set {inside or f'{key}._target_'}"
