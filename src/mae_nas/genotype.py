"""Genotypes: what a search finds, and what is drawn, trained and compared (DARTS, Sec. 2.1).

A cell is a list of edges. Each names its operation, its source and its target node, so any number
of nodes and edges fits. Files and texts come from strangers: they are parsed and checked, never
evaluated. This module does not import torch.
"""

import difflib
import errno
import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mae_nas.notation import looks_like_darts, parse_darts, parse_table
from mae_nas.published import TABLE

FORMAT = "mae_nas.genotype/1"
MAX_NODES = 64
MAX_BYTES = 1 << 20


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Put `place` before the message of a `ValueError`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _shown(value: object) -> str:
    """A value as one short line, whatever a stranger's file holds."""
    return reprlib.repr(value)[:80]


def _integer(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{what} must be an integer, got {_shown(value)}")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} must be a list, got {_shown(value)}")
    return value


def _fields(value: object, wanted: Sequence[str]) -> Mapping[str, Any]:
    """Check that `value` is an object with exactly the keys `wanted`."""
    if not isinstance(value, Mapping):
        raise ValueError(f"wanted an object with {', '.join(wanted)}; got {_shown(value)}")
    for key in wanted:
        if key not in value:
            raise ValueError(f"key {key!r} is missing")
    for key in value:
        if key not in wanted:
            raise ValueError(f"unknown key {_shown(key)}; known: {', '.join(wanted)}")
    return value


@dataclass(frozen=True, slots=True)
class Edge:
    """One operation of a cell: it reads node `source`; its output is added to node `target`."""

    primitive: str
    source: int
    target: int

    def __post_init__(self) -> None:
        name = self.primitive
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
            raise ValueError(f"primitive must be a name like 'sep_conv_3x3', got {_shown(name)}")
        source, target = _integer(self.source, "source"), _integer(self.target, "target")
        if not 0 <= source < target < MAX_NODES:
            raise ValueError(
                f"wanted 0 <= source < target < {MAX_NODES}, "
                f"got source {_shown(source)}, target {_shown(target)}"
            )

    def __str__(self) -> str:
        return f"{self.primitive} {self.source}→{self.target}"


@dataclass(frozen=True, slots=True)
class CellGenotype:
    """A cell: its edges, the nodes concatenated into its output, and how many nodes are inputs.

    Nodes 0 … inputs-1 are the outputs of the cells before. The same edge may occur twice (GDAS can
    pick one twice). The order of edges is kept.
    """

    edges: tuple[Edge, ...]
    concat: tuple[int, ...]
    inputs: int = 2

    def __post_init__(self) -> None:
        if not 1 <= _integer(self.inputs, "inputs") < MAX_NODES:
            raise ValueError(f"inputs must lie in 1 … {MAX_NODES - 1}, got {_shown(self.inputs)}")
        fed = {edge.target for edge in self.edges}
        for edge in self.edges:
            if edge.target < self.inputs:
                raise ValueError(f"edge {edge} ends in an input (nodes 0 … {self.inputs - 1})")
            if edge.source >= self.inputs and edge.source not in fed:
                raise ValueError(f"edge {edge} reads node {edge.source}, which no edge feeds")
        for node in self.concat:
            if _integer(node, "a node of concat") not in fed:
                raise ValueError(f"concat names node {_shown(node)}; edges feed {sorted(fed)}")
        if not self.concat or len(set(self.concat)) < len(self.concat):
            raise ValueError(f"concat must name nodes, each once, of those fed: {sorted(fed)}")

    def to_dict(self) -> dict[str, object]:
        """This cell's part of the JSON document."""
        edges = [asdict(edge) for edge in self.edges]
        return {"edges": edges, "concat": list(self.concat), "inputs": self.inputs}

    @classmethod
    def from_dict(cls, data: object) -> "CellGenotype":
        """Read what `to_dict` wrote."""
        cell = _fields(data, ("edges", "concat", "inputs"))
        edges: list[Edge] = []
        for position, item in enumerate(_list(cell["edges"], "edges")):
            with _at(f"edges[{position}]"):
                edges.append(Edge(**_fields(item, ("primitive", "source", "target"))))
        return cls(tuple(edges), tuple(_list(cell["concat"], "concat")), cell["inputs"])


@dataclass(frozen=True, slots=True)
class Genotype:
    """The result of a search: a normal and a reduction cell."""

    normal: CellGenotype
    reduce: CellGenotype

    @property
    def cells(self) -> dict[str, CellGenotype]:
        """Both cells by kind: "normal" and "reduce"."""
        return {"normal": self.normal, "reduce": self.reduce}

    def to_dict(self) -> dict[str, object]:
        """The JSON document: a format tag and both cells."""
        cells = {kind: cell.to_dict() for kind, cell in self.cells.items()}
        return {"format": FORMAT, **cells}

    @classmethod
    def from_dict(cls, data: object) -> "Genotype":
        """Read what `to_dict` wrote; other top-level keys (a run adds some) are passed over."""
        known = ("format", "normal", "reduce")
        if isinstance(data, Mapping):
            data = {key: value for key, value in data.items() if key in known}
        document = _fields(data, known)
        if document["format"] != FORMAT:
            raise ValueError(f"format must be {FORMAT!r}, got {_shown(document['format'])}")
        cells: list[CellGenotype] = []
        for kind in ("normal", "reduce"):
            with _at(kind):
                cells.append(CellGenotype.from_dict(document[kind]))
        return cls(*cells)


PUBLISHED: Mapping[str, Genotype] = MappingProxyType(
    {name: Genotype.from_dict({"format": FORMAT} | cells) for name, cells in parse_table(TABLE)}
)


def read_genotype(source: str) -> Genotype:
    """The genotype that `source` means: a published name, text (DARTS's or JSON), a file or a run.

    A published name wins over a file of that name (write `./NAME` for the file).

    Raises:
        ValueError: one line that says what is wrong and where, or which names are near.
    """
    if source in PUBLISHED:
        return PUBLISHED[source]
    if looks_like_darts(source) or source.lstrip().startswith("{"):
        return Genotype.from_dict(_parsed(source))
    path = existing_path(source)
    if path is None:
        near = difflib.get_close_matches(source, PUBLISHED, n=3, cutoff=0.5)
        names = f"did you mean {' or '.join(near)}?" if near else f"names: {', '.join(PUBLISHED)}"
        raise ValueError(
            f"genotype {source[:200]!r}: no such file, run folder or published name; {names}"
        )
    if path.is_dir():
        path = path / "genotype.json"
        if not path.exists():
            is_run = (path.parent / "config.json").exists()
            why = "a run writes it at its first reading" if is_run else "this is no run folder"
            raise ValueError(f"{path}: not found; {why}")
    with _at(str(path)):
        return Genotype.from_dict(_document(path))


def existing_path(source: str) -> Path | None:
    """The file or folder of this name; None if there is none, or can be none."""
    try:
        path = Path(source).expanduser()
        return path if source and path.exists() else None
    except RuntimeError:  # ~name of an unknown user
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise


def _document(path: Path) -> object:
    if not path.is_file():
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes, so not a genotype")
    try:
        return _parsed(content.decode())
    except UnicodeDecodeError:
        raise ValueError("not a text file, so not a genotype") from None


def _parsed(text: str) -> object:
    if looks_like_darts(text):
        return {"format": FORMAT} | parse_darts(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"neither whole JSON nor DARTS's text ({error})") from None
