"""Mistakes are told all at once, a line each."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator


def raise_all(problems: Iterable[str]) -> None:
    """One ValueError with a line for each problem; nothing if there is none."""
    lines = list(problems)
    if lines:
        raise ValueError("\n".join(lines))


def first_line(error: Exception) -> str:
    """The first line of what `error` says; its name if it says nothing."""
    return (str(error).splitlines() or [""])[0].strip() or type(error).__name__


class Checked(ABC):
    """Base of dataclasses that refuse values out of range when they are made."""

    def __post_init__(self) -> None:
        raise_all(self._problems())

    @abstractmethod
    def _problems(self) -> Iterator[str]:
        """What is wrong with the values, which have the right types."""
