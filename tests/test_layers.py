"""Which file may import which: read from the source, imports inside functions included."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mae_nas

ROOT = Path(mae_nas.__file__).parent
ROOMS = ("", "spaces", "relaxations", "supernet", "decoders", "objectives", "data", "search")
ROOMS += ("network", "runs", "cli")  # a room imports from those before it; "" is the hall
LIGHTNING = {"stepping.py", "data/pipeline.py"}
LIGHTNING |= {f"runs/{name}.py" for name in ("trainer", "checkpoint", "callbacks", "measure")}
LIGHTNING |= {f"runs/{name}.py" for name in ("progress", "watch")}
TIMM = {"timm.py", "data/augment.py", "network/peers.py", "network/export.py"}
FILES = {path.relative_to(ROOT).as_posix(): path for path in ROOT.rglob("*.py")}


def room_of(name: str) -> str:
    return name.split("/", 1)[0] if "/" in name else ""


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of all that a file imports, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def test_every_room_is_in_the_order() -> None:
    assert {room_of(name) for name in FILES} <= set(ROOMS)
    assert len(FILES) > 60


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_point_one_way(name: str) -> None:
    own = room_of(name)
    for imported, line in imports(FILES[name]):
        package, *parts = imported.split(".")
        other = parts[0] if package == "mae_nas" and parts and parts[0] in ROOMS else ""
        is_front = name in ("__main__.py", "timm.py")
        assert is_front or ROOMS.index(other) <= ROOMS.index(own), f"{name}:{line}: {imported}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_frameworks_stay_where_they_belong(name: str) -> None:
    packages = {imported.split(".")[0] for imported, _ in imports(FILES[name])}
    in_cli = room_of(name) == "cli"
    assert "pytorch_lightning" not in packages
    assert "timm" not in packages or name in TIMM
    assert not packages & {"hydra", "omegaconf"} or in_cli
    assert "lightning" not in packages or in_cli or name in LIGHTNING


def test_no_file_is_too_long() -> None:
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()
    }
    assert {name: length for name, length in lengths.items() if length > 400} == {}
