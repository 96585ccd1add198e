"""Overrides in, plain configuration out, or every mistake at once, a line each.

Overrides are judged one by one, so that one mistake does not hide the next. Names are checked
against the YAML alone, so nothing here imports torch; `check.py` then checks values against the
constructors.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mae_nas.cli.library import Library, conf_dir, open_library, unresolved
from mae_nas.cli.spelling import suggest
from mae_nas.genotype import PUBLISHED, read_genotype
from mae_nas.keys import ABSENT, find, is_inside, leaves

RUN_DIR, SWEEP_DIR = "hydra.run.dir", "hydra.sweep.dir"
OPTIONAL = ("experiment", "scale", "debug")  # groups that may be null
_EXAMPLES = {"_target_": "my_module.MyClass", "root": "/path/to/images", "genotype": "DARTS_V2"}


@dataclass(frozen=True)
class Composed:
    """A configuration of plain dicts, lists and scalars, without Hydra's own node.

    Args:
        config: resolved.
        run_dir: where the run goes.
        run_dir_given: whether the user chose it (else it is dated).
        touched: keys and groups that the overrides set; "" stands for everything.
        targets: classes that the overrides name (`X._target_=...`).
        tree: unresolved, with Hydra's own node.
    """

    config: dict[str, Any]
    run_dir: Path
    run_dir_given: bool
    touched: tuple[str, ...]
    targets: frozenset[str]
    tree: DictConfig


@dataclass
class _Judged:
    """The accepted overrides, the text for Hydra of each, and a line for each that is refused."""

    accepted: list[Override] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def compose(
    overrides: list[str], config_dir: Path | None = None, command: str = "search"
) -> Composed:
    """Compose the command's YAML with `overrides`; one ValueError holds a line per mistake."""
    with open_library(command, config_dir) as library:
        judged = _judge(overrides, library)
        try:
            tree = library.compose(judged.texts)
        except ValueError as error:
            raise ValueError("\n".join([*judged.problems, str(error)])) from error
        raw = unresolved(tree)
        problems = [*judged.problems, *_unset_problems(tree, raw)]
        for group in OPTIONAL:
            if group in raw:
                file = f"{group}/{tree.hydra.runtime.choices[group]}.yaml"
                problems.append(f"{file}: its first line must be `# @package _global_`")
        if problems:
            raise ValueError("\n".join(dict.fromkeys(problems)))
        default = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{command}.yaml"))
        keys = [override.key_or_group for override in judged.accepted]
        named = [o for o in judged.accepted if _names_class(o)]
        config = _resolved(tree)
        given = config["left_out"]
        told = given if isinstance(given, list) else [given]
        config["left_out"] = [*told, *_left_out(raw, judged.texts, library)]
        return Composed(
            config=config,
            run_dir=Path(tree.hydra.run.dir),
            run_dir_given=find(raw, RUN_DIR) != find(default, RUN_DIR),
            touched=tuple("" if key in OPTIONAL else key for key in keys),
            targets=frozenset(str(override.value()) for override in named),
            tree=tree,
        )


def revalued(tree: DictConfig, overrides: Iterable[str]) -> dict[str, Any]:
    """The configuration once `overrides` are written into `tree`, which has their keys already."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        OmegaConf.update(tree, override.key_or_group, override.value())
    return _resolved(tree)


def _judge(texts: list[str], library: Library) -> _Judged:
    """Split `texts` into what can be composed and lines about what cannot."""
    judged = _Judged()
    groups = library.groups()
    overrides = list(_parse(texts, groups, judged.problems))
    for override in overrides:
        if override.key_or_group in groups:
            _judge_group(override, groups[override.key_or_group], judged)
    try:
        tree = library.compose(judged.texts)
    except ValueError as error:
        # E.g. a broken file of the user's: the rest is still worth checking, on the defaults.
        judged.problems.append(str(error))
        judged.texts.clear()
        tree = library.compose([])
    values = [override for override in overrides if override.key_or_group not in groups]
    # Nodes whose class is the user's own: its constructor, not our YAML, knows the keys.
    free = {str(k) for k, choice in tree.hydra.runtime.choices.items() if choice == "custom"}
    free |= {o.key_or_group.removesuffix("._target_") for o in values if _names_class(o)}
    free.add("hydra.launcher.slurm.additional_parameters")  # sbatch knows them
    plain = unresolved(tree)
    launcher = {k: v for k, v in plain["hydra"]["launcher"].items() if k != "_target_"}
    # Of Hydra's keys, those that something here obeys.
    plain["hydra"] = {"run": {"dir": ""}, "sweep": {"dir": ""}, "launcher": launcher}
    for override in values:
        problems = list(_value_problems(override, plain, free))
        judged.problems += problems
        if not problems:
            judged.accepted.append(override)
            judged.texts.append(_text(override, plain, free))
    return judged


def _parse(texts: list[str], groups: Collection[str], problems: list[str]) -> Iterator[Override]:
    parser = OverridesParser.create()
    for text in texts:
        try:
            override = parser.parse_override(text)
            if not override.key_or_group:
                raise HydraException
        except HydraException:
            hint = "a value with special characters needs quotes, e.g. 'data.root=\"/my (images)\"'"
            hint = hint if "=" in text[1:] else "write KEY=VALUE, without a space beside ="
            problems.append(f"{text}: cannot be read as key=value; {hint}")
            continue
        key = override.key_or_group
        if override.package is not None:
            problems.append(f"{text}: packages (@) are not used here; write {key}=…")
        elif override.is_sweep_override():
            hint = f"a list is written {key}=[a,b], text with commas '{key}=\"a,b\"'"
            hint = "a group takes one name" if key in groups else hint
            problems.append(f"{text}: several values are a sweep, with -m; {hint}")
        else:
            yield override


def _judge_group(override: Override, options: list[str], judged: _Judged) -> None:
    group, value = override.key_or_group, override.value()
    option, listed = "null" if value is None else str(value), ", ".join(options)
    if option in options or (value is None and group in OPTIONAL):
        # As with values, the last one of a group wins; Hydra itself would refuse the second.
        others = [text for text in judged.texts if not text.startswith(f"{group}=")]
        judged.texts = others + ([] if value is None else [f"{group}={option}"])
        judged.accepted.append(override)
    elif isinstance(value, dict | list):
        judged.problems.append(f"{group}: a group takes one name of {listed}")
    else:
        near = suggest(option, options)
        judged.problems.append(f"{group}={option}: no such option{near} ({listed})")


def _names_class(override: Override) -> bool:
    key = override.key_or_group
    return key.endswith("._target_") and not key.startswith("hydra.") and not override.is_delete()


def _adds(override: Override) -> bool:
    return override.is_add() or override.is_force_add()


def _text(override: Override, tree: Mapping[str, Any], free: set[str]) -> str:
    """As Hydra wants it, which refuses a new key without `++`."""
    key, text = override.key_or_group, str(override.input_line)
    is_open = isinstance(override.value(), dict) and (_adds(override) or is_inside(key, free))
    is_new = (is_open or find(tree, key) is ABSENT) and not override.is_delete()
    return "++" + text.lstrip("+") if is_new else text


def _value_problems(override: Override, tree: Mapping[str, Any], free: set[str]) -> Iterator[str]:
    key, old, value = override.key_or_group, find(tree, override.key_or_group), override.value()
    if override.is_delete() and old is not ABSENT:
        return  # what a class that replaces ours does not take; what it needs is checked later
    unknown = [
        leaf
        for leaf, _ in leaves(value, key)
        if find(tree, leaf) is ABSENT
        # A constructor may know the key (checked later): of the user's own class, or with `+`.
        and not is_inside(leaf, free)
        and not (
            _adds(override) and find(tree, f"{leaf.rpartition('.')[0]}._target_") is not ABSENT
        )
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


def _unset_problems(tree: DictConfig, raw: dict[str, Any]) -> Iterator[str]:
    """Missing values (`???`) and interpolations that lead nowhere."""
    ours = [pair for pair in leaves(raw) if not is_inside(pair[0], ["hydra"])]
    for key, value in [*ours, *((key, find(raw, key)) for key in (RUN_DIR, SWEEP_DIR))]:
        if value == "???" or (key in (RUN_DIR, SWEEP_DIR) and value == ""):
            example = _EXAMPLES.get(key.rpartition(".")[2], "VALUE")
            yield f"{key}: needed, e.g. {key}={example}"
        elif "${" in str(value):
            try:
                _plain(OmegaConf.select(tree, key))
            except OmegaConfBaseException as error:
                text = str(error).splitlines()[0].rpartition("while resolving interpolation: ")[2]
                if not text.startswith("Missing mandatory value"):  # told of that key itself
                    yield f"{key}: {text}"


def _left_out(tree: dict[str, Any], texts: list[str], library: Library) -> list[str]:
    """What the chosen scale changes of the experiment, an entry for each key."""
    full = [text for text in texts if not text.startswith("scale=")]
    if full == texts:
        return []
    whole = unresolved(library.compose(full))
    pairs = ((key, value, find(whole, key)) for key, value in leaves(tree))
    return [
        f"{key} {_yaml(value)}, not {_yaml(other)}"
        for key, value, other in pairs
        if value != other and not key.startswith(("hydra.", "efficiency."))
    ]


def _yaml(value: object) -> object:
    return "null" if value is None else value


def _resolved(tree: DictConfig) -> dict[str, Any]:
    config: dict[str, Any] = {str(key): _plain(tree[key]) for key in tree if key != "hydra"}
    given = config.get("genotype")
    if isinstance(given, str) and given not in PUBLISHED:
        # A file says something else later: what it says now is what is searched and recorded.
        with suppress(ValueError, OSError):  # told of by the class that asks for it
            said = json.dumps(read_genotype(given).to_dict())
            config |= {"genotype": said}
            relaxation = config.get("relaxation", {})
            if relaxation.get("genotype") == given:
                relaxation["genotype"] = said
    return config


def _plain(value: object) -> object:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
