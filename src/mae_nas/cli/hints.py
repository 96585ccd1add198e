"""Does a value from YAML fit a type annotation, and how is that annotation said in words?"""

from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, NamedTuple, Union, get_args, get_origin


class _Words(NamedTuple):
    accepted: tuple[type, ...]
    one: str
    many: str
    example: str = ""


_SCALARS: dict[object, _Words] = {
    # YAML writes 1 where a float is meant, and a path is text.
    float: _Words((float, int), "a float", "floats", "0.5"),
    int: _Words((int,), "an int", "ints", "8"),
    bool: _Words((bool,), "true or false", "true or false", "true"),
    str: _Words((str,), "text", "texts"),
    Path: _Words((str,), "a path", "paths"),
    NoneType: _Words((NoneType,), "null", "null"),
}


def fits(value: object, hint: object) -> bool:
    """True when `value` is what `hint` says; annotations that we do not know fit everything."""
    if hint in _SCALARS:
        is_wrong_bool = isinstance(value, bool) and hint is not bool  # True is an int to Python
        return isinstance(value, _SCALARS[hint].accepted) and not is_wrong_bool
    kind, args = get_origin(hint) or hint, get_args(hint)
    if kind is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if kind in (Union, UnionType):
        return any(fits(value, arg) for arg in args)
    if not isinstance(kind, type) or not issubclass(kind, Sequence):
        return True
    if not isinstance(value, list | tuple):
        return False
    if kind is tuple and args and args[-1] is not ...:
        return len(value) == len(args) and all(map(fits, value, args))
    return not args or all(fits(entry, args[0]) for entry in value)


def describe(hint: object) -> str:
    """The annotation in words: "an int or auto"."""
    if hint in _SCALARS:
        return _SCALARS[hint].one
    kind, args = get_origin(hint), get_args(hint)
    if kind is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(str, args))
    if kind in (Union, UnionType):
        return " or ".join(map(describe, args))
    entries = [
        _SCALARS[arg].many if arg in _SCALARS else describe(arg) for arg in args if arg is not ...
    ]
    return "a list" + (" of " + " and ".join(entries) if entries else "")


def example(hint: object) -> str:
    """A value that fits, for scalars, else nothing."""
    return _SCALARS[hint].example if hint in _SCALARS else ""
