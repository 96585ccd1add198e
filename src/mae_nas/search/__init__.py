"""The bilevel search: alternating steps, derivation, readings and the collapse verdict."""

from mae_nas.search.module import BilevelSettings, SearchModule
from mae_nas.search.reading import SearchReading, take_reading
from mae_nas.spaces.derivation import derive

__all__ = [
    "BilevelSettings",
    "SearchModule",
    "SearchReading",
    "derive",
    "take_reading",
]
