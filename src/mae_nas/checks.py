"""Mistakes are told all at once, a line each."""

from collections.abc import Iterable


def raise_all(problems: Iterable[str]) -> None:
    """One ValueError with a line for each problem; nothing if there is none."""
    lines = list(problems)
    if lines:
        raise ValueError("\n".join(lines))
