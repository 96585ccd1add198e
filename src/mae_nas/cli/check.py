"""A composed configuration against the constructors it names: names, types, ranges.

The constructors' own signatures are the schema, so a class of the user's is checked like ours.
"""

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from mae_nas.cli.build import FACTS, build, import_target, prefixed
from mae_nas.cli.hints import describe, example, fits
from mae_nas.cli.spelling import suggest

NODES = ("data", "space", "relaxation", "objective", "decoder", "mask", "trainer", "logger")
NODES += ("efficiency", "supernet", "search")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
OPTIMIZERS = ("search.weight_optimizer", "search.arch_optimizer")


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
    if named is not None:
        problems += _foreign_names(nodes, named)
    if not problems:  # nothing is imported before every name may be
        problems = list(_root_problems(config))
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


def _root_problems(config: Mapping[str, Any]) -> Iterator[str]:
    values = {key: config[key] for key in inspect.signature(Root).parameters}
    problems = list(_value_problems(Root, values, ""))
    yield from problems
    if not problems:
        try:
            Root(**values)
        except ValueError as error:
            yield str(error)


def _foreign_names(nodes: Mapping[str, Mapping[str, Any]], named: Collection[str]) -> Iterator[str]:
    for path, node in nodes.items():
        target = str(node["_target_"])
        if target not in named and not target.startswith(("mae_nas.", "torch.optim.")):
            yield _refusal(path, target)


def _refusal(path: str, target: str) -> str:
    return (
        f"{path}._target_: the stored configuration names {target}, which is not ours; "
        f"if you trust it, name it yourself: {path}._target_={target}"
    )


def _is_foreign(target: object, name: str, named: Collection[str]) -> bool:
    """`mae_nas.x.os.system` begins well and leads elsewhere: what counts is where it was made."""
    home = f"{getattr(target, '__module__', '')}."
    ours = inspect.isclass(target) and home.startswith(("mae_nas.", "torch.optim."))
    return name not in named and not ours


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
    if named is not None and _is_foreign(target, name, named):
        yield _refusal(path, name)
        return
    values = {key: value for key, value in node.items() if key != "_target_"}
    problems = [*_name_problems(target, values, path), *_value_problems(target, values, path)]
    yield from problems
    if not problems and (path in OPTIMIZERS or not _needs_facts(target, values)):
        try:
            _try(target, node, path)
        except (ValueError, TypeError, RuntimeError) as error:
            yield prefixed(path, str(error).splitlines()[0])


def _try(target: Callable[..., object], node: Mapping[str, Any], path: str) -> None:
    """Construct what needs nothing else: only constructors know the ranges of their values."""
    if path in OPTIMIZERS:
        from torch import nn, zeros

        values = {key: value for key, value in node.items() if key != "_target_"}
        target([nn.Parameter(zeros(1))], **values)
    else:
        build(node, {}, path)


def _name_problems(
    target: Callable[..., object], values: Mapping[str, Any], path: str
) -> Iterator[str]:
    parameters = inspect.signature(target).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    usable = [
        n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    for key in values:
        if key not in usable and not takes_any:
            full = [f"{path}.{name}" for name in usable if name not in FACTS]
            near = suggest(f"{path}.{key}", full)
            yield f"{path}.{key}: {_name(target)} takes no such argument{near}"
    for name in _required(target):
        if name not in values and not _is_injected(path, name):
            yield f"{path}.{name}: needed, {_name(target)} has no default for it"


def _required(target: Callable[..., object]) -> list[str]:
    parameters = inspect.signature(target).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind in _NAMED]


def _name(target: Callable[..., object]) -> str:
    return getattr(target, "__name__", str(target))


def _is_injected(path: str, name: str) -> bool:
    return name in FACTS or (path in OPTIMIZERS and name == "params")


def _needs_facts(target: Callable[..., object], values: Mapping[str, Any]) -> bool:
    return any(name not in values for name in _required(target))


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
