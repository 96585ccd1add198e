"""The bilevel search: alternating steps, derivation, readings and the collapse verdict."""

from mae_nas.search.module import BilevelSettings, NonFiniteLossError, SearchModule
from mae_nas.search.reading import Reading, take_reading
from mae_nas.spaces.derivation import derive

__all__ = [
    "BilevelSettings",
    "NonFiniteLossError",
    "Reading",
    "SearchModule",
    "derive",
    "take_reading",
]
