"""Two written forms of a genotype, turned into the JSON document's cells: DARTS's and our table's.

Nothing is evaluated, and only the notation is checked here; `Genotype.from_dict` checks the cells.
"""

import ast
import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

Cells = dict[str, object]

_KINDS = ("normal", "reduce")
_INPUTS = 2
_MAX_CONCAT = 64
_FIELDS = "Genotype(normal=..., normal_concat=..., reduce=..., reduce_concat=...)"
_BEGINNING = re.compile(r"^\s*(\w+\s*=\s*)?Genotype\s*\(")
_OPERATIONS = {
    "sep3": "sep_conv_3x3",
    "sep5": "sep_conv_5x5",
    "sep7": "sep_conv_7x7",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
    "7x1": "conv_7x1_1x7",
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "skip": "skip_connect",
    "noise": "noise",
}


def looks_like_darts(text: str) -> bool:
    """Whether `text` begins as `Genotype(` or `name = Genotype(`."""
    return _BEGINNING.match(text) is not None


def parse_darts(text: str) -> Cells:
    """Cells of `Genotype(normal=[(name, source), ...], normal_concat=range(2, 6), ...)`."""
    fields = _fields(text)
    return {
        kind: {
            "edges": _edges(_literal(fields[kind], kind), kind),
            "concat": _concat(fields[f"{kind}_concat"], f"{kind}_concat"),
            "inputs": _INPUTS,
        }
        for kind in _KINDS
    }


def darts_text(document: Mapping[str, Any]) -> str:
    """DARTS's text of a JSON document whose nodes each have two edges, listed node by node.

    Raises:
        ValueError: of a cell that the text cannot say.
    """
    fields = []
    for kind in _KINDS:
        edges, concat = document[kind]["edges"], document[kind]["concat"]
        targets = [edge["target"] for edge in edges]
        if targets != [_INPUTS + place // 2 for place in range(len(edges))] or len(edges) % 2:
            raise ValueError(f"{kind}: DARTS's text has two edges for each node; JSON fits any")
        pairs = [(edge["primitive"], edge["source"]) for edge in edges]
        fields.append(f"{kind}={pairs}, {kind}_concat={concat}")
    return f"Genotype({', '.join(fields)})"


def parse_table(table: str) -> Iterator[tuple[str, Cells]]:
    """Name and cells of each entry of `published.TABLE`."""
    lines = table.split("\n")
    for name, *cells in zip(lines[0::3], lines[1::3], lines[2::3], strict=False):
        yield name, {kind: _row(line) for kind, line in zip(_KINDS, cells, strict=True)}


def _row(line: str) -> Cells:
    nodes, concat = line.split(" -> ")
    edges: list[Cells] = []
    for node in nodes.split():
        target, terms = node.split("=")
        for operation, source in re.findall(r"(\w+)\((\d)\)", terms):
            edges.append(_edge(_OPERATIONS[operation], int(source), int(target)))
    return {"edges": edges, "concat": [int(digit) for digit in concat], "inputs": _INPUTS}


def _edge(primitive: object, source: object, target: int) -> Cells:
    return {"primitive": primitive, "source": source, "target": target}


def _fields(text: str) -> dict[str, ast.expr]:
    """The expressions of the four fields; `ValueError` for any other text."""
    try:
        body = ast.parse(_BEGINNING.sub("Genotype(", text)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        raise ValueError(f"not the text of a DARTS genotype ({reason})") from None
    match body:
        case [ast.Expr(ast.Call(ast.Name("Genotype"), [], keywords))]:
            names = [str(keyword.arg) for keyword in keywords]
        case _:
            raise ValueError(f"wanted one {_FIELDS}")
    if sorted(names) != ["normal", "normal_concat", "reduce", "reduce_concat"]:
        raise ValueError(f"wanted one {_FIELDS}, got the fields {reprlib.repr(names)}")
    return {name: keyword.value for name, keyword in zip(names, keywords, strict=True)}


def _literal(node: ast.expr, place: str) -> Any:  # noqa: ANN401 - any literal
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise ValueError(
            f"{place}: only lists, tuples, names in quotes and integers are read"
        ) from None


def _edges(entries: object, place: str) -> list[Cells]:
    if not isinstance(entries, list | tuple):
        raise ValueError(f"{place}: wanted a list of ('name', source)")
    if len(entries) % 2:
        raise ValueError(
            f"{place}: {len(entries)} entries, but two feed each node; JSON fits any number"
        )
    edges: list[Cells] = []
    for position, entry in enumerate(entries):
        match entry:
            case [primitive, source]:
                edges.append(_edge(primitive, source, _INPUTS + position // 2))
            case _:
                raise ValueError(
                    f"{place}: entry {position} is {reprlib.repr(entry)}, wanted ('name', source)"
                )
    return edges


def _concat(node: ast.expr, place: str) -> list[object]:
    nodes: object
    match node:
        case ast.Call(ast.Name("range"), arguments, []):
            bounds = [_literal(argument, place) for argument in arguments]
            try:
                nodes = range(*bounds)
            except (TypeError, ValueError):
                nodes = None
        case _:
            nodes = _literal(node, place)
    # A range may be astronomically long: it is cut before it is counted.
    cut = nodes[: _MAX_CONCAT + 1] if isinstance(nodes, list | tuple | range) else ()
    if not 1 <= len(cut) <= _MAX_CONCAT:
        raise ValueError(f"{place}: wanted range(2, 6) or a list of 1 … {_MAX_CONCAT} nodes")
    return list(cut)
