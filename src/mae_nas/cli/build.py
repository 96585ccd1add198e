"""From a configuration node to an object: `_target_`, its keys, and the facts it asks for."""

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mae_nas.cli.spelling import suggest

Built = TypeVar("Built")

_SHAPES = frozenset({"features", "channels", "side", "space", "masking"})
FACTS: Mapping[str, frozenset[str]] = {
    "decoder": _SHAPES,
    "objective": _SHAPES | {"decoder"},
    "relaxation": frozenset({"space"}),
}
"""Arguments that the composition root gives by name, if a node's constructor asks for them."""


def import_target(target: object) -> Callable[..., object]:
    """The class that a dotted name stands for; ValueError in one line, naming the nearest."""
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ValueError(f"{target!r} is not a dotted name like my_module.MyClass")
    module_name, attribute = ".".join(parts[:-1]), parts[-1]
    module = _import_module(module_name)
    found = getattr(module, attribute, None)
    if found is None:
        public = [name for name in dir(module) if not name.startswith("_")]
        raise ValueError(f"{module_name} has no {attribute}{suggest(attribute, public)}")
    if not callable(found):
        raise ValueError(f"{target} is not a class")
    return found


def build(
    kind: type[Built], node: Mapping[str, object], facts: Mapping[str, object], path: str = ""
) -> Built:
    """Call the node's class with its keys, plus those `facts` that its signature names.

    A node inside the node becomes a `functools.partial` of its class, for the receiver to complete:
    an optimizer gets its parameters later.

    Args:
        kind: what the class must be.
        node: `_target_` and keyword arguments.
        facts: see `FACTS`.
        path: of the node in the configuration, for errors ("decoder").

    Raises:
        ValueError: the class cannot be found or is no `kind`, or the constructor refuses.
    """
    try:
        target = import_class(kind, node, path)
        wanted = inspect.signature(target).parameters
        injected = {name: facts[name] for name in facts if name in wanted}
        return target(**_arguments(node), **injected)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError("\n".join(refusals(path, error))) from error


def import_class(kind: type[Built], node: Mapping[str, object], path: str) -> type[Built]:
    """The node's class; ValueError unless it is a subclass of `kind`: nothing else is called."""
    target = import_target(node["_target_"])
    if not (inspect.isclass(target) and issubclass(target, kind)):
        where = f"{path}._target_: ".lstrip(".")
        raise ValueError(f"{where}{node['_target_']} is not a {_public_name(kind)}")
    return target


def refusals(path: str, error: Exception) -> list[str]:
    """What a constructor refuses, a line each; of other errors than ours, the first line."""
    lines = str(error).splitlines() or [type(error).__name__]
    return [prefixed(path, line) for line in lines[: None if isinstance(error, ValueError) else 1]]


def prefixed(path: str, message: str) -> str:
    """Say which node a message is about, unless it says so itself ("data.side: ...")."""
    says_so = not path or message.startswith((f"{path}.", f"{path}:"))
    return message if says_so else f"{path}: {message}"


def _arguments(node: Mapping[str, object]) -> dict[str, object]:
    return {key: _part(value) for key, value in node.items() if key != "_target_"}


def _part(value: object) -> object:
    return part(value) if isinstance(value, Mapping) and "_target_" in value else value


def part(node: Mapping[str, object]) -> functools.partial[Any]:
    """A node inside a node: its class and arguments, for the receiver to complete."""
    return functools.partial(import_target(node["_target_"]), **_arguments(node))


def _public_name(kind: type) -> str:
    """Where users import it from: the room, where that shows the class."""
    room = kind.__module__.rpartition(".")[0]
    shown = getattr(sys.modules.get(room), kind.__name__, None) is kind
    return f"{room if shown else kind.__module__}.{kind.__name__}"


def _import_module(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name != missing and not name.startswith(f"{missing}."):
            raise ValueError(f"{name} imports {missing}, which is not installed") from error
        raise ValueError(f"no module {missing}{_nearest_module(missing)}") from error
    except Exception as error:  # the user's file may raise anything; its own words fit a line
        text = " ".join(str(error).split())
        raise ValueError(f"importing {name} failed: {type(error).__name__}: {text}") from error


def _nearest_module(name: str) -> str:
    parent, dot, _ = name.rpartition(".")
    folders = getattr(importlib.import_module(parent), "__path__", []) if parent else [Path.cwd()]
    near = [f"{parent}{dot}{module.name}" for module in pkgutil.iter_modules(map(str, folders))]
    return suggest(name, near) or " in the current folder or Python's path"
