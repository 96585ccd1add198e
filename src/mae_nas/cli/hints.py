"""Does a value from YAML fit a type annotation, and how is that annotation said in words?"""

import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_SCALARS: dict[object, tuple[tuple[type, ...], str]] = {
    # YAML writes 1 where a float is meant, and a path is text.
    float: ((float, int), "a float"),
    int: ((int,), "an int"),
    bool: ((bool,), "true or false"),
    str: ((str,), "text"),
    Path: ((str,), "a path"),
    None: ((type(None),), "null"),
    type(None): ((type(None),), "null"),
}


def fits(value: object, hint: object) -> bool:
    """True when `value` is what `hint` says; annotations that we do not know fit everything."""
    if hint in _SCALARS:
        accepted, _ = _SCALARS[hint]
        return isinstance(value, accepted) and (hint is bool or not isinstance(value, bool))
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return fits(value, args[0])
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if origin in (Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    kind = origin or hint
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return _mapping_fits(value, args)
    if kind in (set, frozenset) or (isinstance(kind, type) and issubclass(kind, Sequence)):
        return _sequence_fits(value, kind, args)
    return kind is not Iterable or _sequence_fits(value, kind, args)


def describe(hint: object) -> str:
    """The annotation in words: "an int or 'auto'"."""
    if hint in _SCALARS:
        return _SCALARS[hint][1]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return describe(args[0])
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(str(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    kind = origin or hint
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a mapping"
    of = " of " + " and ".join(_plural(arg) for arg in args if arg is not ...) if args else ""
    return f"a list{of}"


def example(hint: object) -> str:
    """A value that fits, for scalars, else nothing."""
    return {float: "0.5", int: "8", bool: "true"}.get(hint, "")  # type: ignore[call-overload]


def _plural(hint: object) -> str:
    words = {float: "floats", int: "ints", bool: "true or false", str: "texts"}
    return words.get(hint) or describe(hint)  # type: ignore[call-overload]


def _mapping_fits(value: object, args: tuple[Any, ...]) -> bool:
    if not isinstance(value, Mapping):
        return False
    return len(args) < 2 or all(fits(entry, args[1]) for entry in value.values())


def _sequence_fits(value: object, kind: object, args: tuple[Any, ...]) -> bool:
    if not isinstance(value, list | tuple):
        return False
    if kind is tuple and args and args[-1] is not ...:
        return len(value) == len(args) and all(map(fits, value, args))
    return not args or all(fits(entry, args[0]) for entry in value)
