"""Dotted keys into nested configuration: plain dicts, lists and scalars."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

ABSENT: Final = object()
"""What `find` returns for a key that leads nowhere (None is a value)."""


def leaves(tree: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of all that is not a non-empty mapping."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def find(tree: object, key: str) -> object:
    """The value at `key`, list positions included, or `ABSENT`; "" is the tree itself."""
    for part in key.split(".") if key else ():
        if isinstance(tree, dict) and part in tree:
            tree = tree[part]
        elif isinstance(tree, list) and part.isdecimal() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            return ABSENT
    return tree


def is_inside(key: str, sections: Iterable[str]) -> bool:
    """True when `key` is one of `sections` or lies below one; "" is everything."""
    return any(not one or key == one or key.startswith(f"{one}.") for one in sections)
