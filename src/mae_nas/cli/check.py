"""A composed configuration against the constructors it names: names, types, ranges.

The constructors' own signatures are the schema, so a class of the user's is checked like ours.
"""

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from torch import nn, zeros

from mae_nas.cli.build import FACTS, build, import_target, prefixed
from mae_nas.cli.hints import describe, example, fits
from mae_nas.cli.spelling import suggest

NODES = ("data", "space", "relaxation", "objective", "decoder", "mask", "trainer", "logger")
NODES += ("efficiency", "supernet", "search")
OPTIMIZERS = ("search.weight_optimizer", "search.arch_optimizer")
TRUSTED = ("mae_nas.", "torch.optim.")


@dataclass(frozen=True)
class Root:
    """The keys that belong to no plug-in, checked like every constructor."""

    name: str
    seed: int
    resume: str | None
    on_collapse: Literal["warn", "stop"]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(f"name: {self.name!r} is not a folder name (letters, digits, . _ -)")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: {self.seed} is not within 0 and {2**32 - 1}")


def check(config: Mapping[str, Any], named: Collection[str] | None = None) -> None:
    """Raise one ValueError with a line per mistake, or nothing.

    Args:
        config: composed, or read back from a run.
        named: None for a configuration that the user composed just now. One that was read back is
            data (method, "a run folder from a stranger"): only names under `mae_nas`, optimizers of
            torch and the classes `named` on the present command line are imported.
    """
    nodes = dict(_nodes(config))
    problems = list(_structure_problems(config, nodes))
    for path, node in nodes.items():
        name = str(node["_target_"])
        if named is not None and name not in named and not name.startswith(TRUSTED):
            problems.append(_refusal(path, name))
    if not problems:  # nothing is imported before every name may be
        problems = _root_problems(config)
        for path, node in nodes.items():
            problems += _node_problems(path, node, named)
    if problems:
        raise ValueError("\n".join(problems))


def _nodes(tree: object, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(path, node) of every mapping with a `_target_`, at any depth, also inside lists."""
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            yield path, tree
        for key, value in tree.items():
            yield from _nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from _nodes(value, f"{path}.{number}")


def _structure_problems(config: Mapping[str, Any], nodes: Mapping[str, Any]) -> Iterator[str]:
    roots = list(inspect.signature(Root).parameters)
    for key in (*NODES, *OPTIMIZERS):
        if key not in nodes:
            yield f"{key}._target_: needed, the class to build"
    for key in config:
        if key not in NODES and key not in roots:
            yield f"{key}: no such key{suggest(key, [*NODES, *roots])}"
    for key in roots:
        if key not in config:
            yield f"{key}: needed"


def _root_problems(config: Mapping[str, Any]) -> list[str]:
    values = {key: config[key] for key in inspect.signature(Root).parameters}
    problems = list(_value_problems(Root, values, ""))
    if not problems:
        try:
            Root(**values)
        except ValueError as error:
            problems = [str(error)]
    return problems


def _refusal(path: str, target: str) -> str:
    return (
        f"{path}._target_: the stored configuration names {target}, which is not ours; "
        f"if you trust it, name it yourself: {path}._target_={target}"
    )


def _is_trusted(target: object) -> bool:
    """`mae_nas.x.os.system` begins well and leads elsewhere: what counts is where it was made."""
    return inspect.isclass(target) and f"{target.__module__}.".startswith(TRUSTED)


def _node_problems(
    path: str, node: Mapping[str, Any], named: Collection[str] | None
) -> Iterator[str]:
    name = node["_target_"]
    if not isinstance(name, str):
        yield f"{path}._target_: {name!r} is not a dotted name like my_module.MyClass"
        return
    try:
        target = import_target(name)
    except ValueError as error:
        yield f"{path}._target_: {error}"
        return
    if named is not None and name not in named and not _is_trusted(target):
        yield _refusal(path, name)
        return
    values = {key: value for key, value in node.items() if key != "_target_"}
    problems = [*_name_problems(target, values, path), *_value_problems(target, values, path)]
    yield from problems
    if not problems and (path in OPTIMIZERS or not _missing(target, values)):
        try:
            # Only constructors know the ranges of their values.
            if path in OPTIMIZERS:
                target([nn.Parameter(zeros(1))], **values)
            else:
                build(object, node, {}, path)
        except (ValueError, TypeError, RuntimeError) as error:
            yield prefixed(path, str(error).splitlines()[0])


def _name_problems(
    target: Callable[..., object], values: Mapping[str, Any], path: str
) -> Iterator[str]:
    facts = FACTS.get(path, frozenset())
    parameters = inspect.signature(target).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        usable = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        for key in sorted(values.keys() - usable):
            near = suggest(f"{path}.{key}", [f"{path}.{name}" for name in usable - facts])
            yield f"{path}.{key}: {_name(target)} takes no such argument{near}"
    if path in NODES:  # what else a node inside a node needs, its receiver adds
        for name in _missing(target, values):
            if name not in facts:
                yield f"{path}.{name}: needed, {_name(target)} has no default for it"


def _missing(target: Callable[..., object], values: Mapping[str, Any]) -> list[str]:
    """Arguments that have no default and that the node does not give."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(target).parameters.values()
    return [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in variadic and p.name not in values
    ]


def _name(target: Callable[..., object]) -> str:
    return getattr(target, "__name__", str(target))


def _value_problems(
    target: Callable[..., object], values: Mapping[str, Any], path: str
) -> Iterator[str]:
    hints = _hints(target)
    defaults = inspect.signature(target).parameters
    for key, value in values.items():
        if key in hints and not fits(value, hints[key]):
            default = defaults[key].default if key in defaults else inspect.Parameter.empty
            good = default not in (inspect.Parameter.empty, None) and fits(default, hints[key])
            listed = list(default) if isinstance(default, tuple) else default
            shown = repr(listed) if good else example(hints[key])
            would = f" ({shown} would be)" if shown else ""
            name = f"{path}.{key}" if path else key
            yield f"{name}: {value!r} is not {describe(hints[key])}{would}"


def _hints(target: Callable[..., object]) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):  # annotations that cannot be resolved pass
        return {}
