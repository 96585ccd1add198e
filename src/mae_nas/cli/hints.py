"""Does a value from YAML fit a type annotation, and how is that annotation said in words?"""

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Union, get_args, get_origin

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
_UNIONS = (Union, types.UnionType)


def fits(value: object, hint: object) -> bool:
    """True when `value` is what `hint` says; annotations that we do not know fit everything."""
    if hint in _SCALARS:
        accepted, _ = _SCALARS[hint]
        return isinstance(value, accepted) and (hint is bool or not isinstance(value, bool))
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if origin in _UNIONS:
        return any(fits(value, arg) for arg in args)
    kind = origin or hint
    if not isinstance(kind, type) or not issubclass(kind, Sequence):
        return True
    if not isinstance(value, list | tuple):
        return False
    if kind is tuple and args and args[-1] is not ...:
        return len(value) == len(args) and all(map(fits, value, args))
    return not args or all(fits(entry, args[0]) for entry in value)


def describe(hint: object) -> str:
    """The annotation in words: "an int or 'auto'"."""
    if hint in _SCALARS:
        return _SCALARS[hint][1]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(str(arg) for arg in args)
    if origin in _UNIONS:
        return " or ".join(describe(arg) for arg in args)
    of = " of " + " and ".join(_plural(arg) for arg in args if arg is not ...) if args else ""
    return f"a list{of}"


def example(hint: object) -> str:
    """A value that fits, for scalars, else nothing."""
    return {float: "0.5", int: "8", bool: "true"}.get(hint, "")  # type: ignore[call-overload]


def _plural(hint: object) -> str:
    words = {float: "floats", int: "ints", bool: "true or false", str: "texts"}
    return words.get(hint) or describe(hint)  # type: ignore[call-overload]
