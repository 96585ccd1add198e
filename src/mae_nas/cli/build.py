"""From a configuration node to an object: `_target_`, its keys, and the facts it asks for."""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path

from mae_nas.cli.spelling import suggest

FACTS = frozenset({"features", "channels", "side", "space", "masking", "decoder", "seed"})
"""Arguments that the composition root gives by name to whichever constructor asks for them."""


def import_target(target: str) -> Callable[..., object]:
    """The class that a dotted name stands for; ValueError in one line, naming the nearest."""
    module_name, _, attribute = target.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in target.split(".")):
        raise ValueError(f"{target!r} is not a dotted name like my_module.MyClass")
    module = _import_module(module_name)
    found = getattr(module, attribute, None)
    if found is None:
        public = [name for name in dir(module) if not name.startswith("_")]
        raise ValueError(f"{module_name} has no {attribute}{suggest(attribute, public)}")
    if not callable(found):
        raise ValueError(f"{target} is not a class")
    return found


def build(node: Mapping[str, object], facts: Mapping[str, object], path: str = "") -> object:
    """Call the node's class with its keys, plus those `facts` that its signature names.

    A node inside the node becomes a `functools.partial` of its class, for the receiver to complete:
    an optimizer gets its parameters later.

    Args:
        node: `_target_` and keyword arguments; what it says itself wins over a fact.
        facts: see `FACTS`.
        path: of the node in the configuration, for errors ("decoder").
    """
    try:
        target = import_target(str(node["_target_"]))
        arguments = {str(key): _part(value) for key, value in node.items() if key != "_target_"}
        wanted = inspect.signature(target).parameters
        injected = {name: facts[name] for name in facts if name in wanted and name not in node}
        return target(**arguments, **injected)
    except ValueError as error:
        raise ValueError(prefixed(path, str(error))) from error


def prefixed(path: str, message: str) -> str:
    """Say which node a message is about, unless it says so itself ("data.side: ...")."""
    return (
        message
        if not path or message.startswith((f"{path}.", f"{path}:"))
        else f"{path}: {message}"
    )


def _part(value: object) -> object:
    if not isinstance(value, Mapping) or "_target_" not in value:
        return value
    arguments = {str(key): _part(inner) for key, inner in value.items() if key != "_target_"}
    return functools.partial(import_target(str(value["_target_"])), **arguments)


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
    parent, _, last = name.rpartition(".")
    if parent:
        names = [file.stem for p in _search_path(parent) for file in Path(p).iterdir()]
    else:
        names = [file.stem for file in Path.cwd().glob("*.py")]
    near = get_close_matches(last, names, n=1)
    full = f"{parent}.{near[0]}" if near and parent else (near or [""])[0]
    return f"; did you mean {full}?" if full else " in the current folder or Python's path"


def _search_path(package: str) -> list[str]:
    return list(getattr(importlib.import_module(package), "__path__", []))
