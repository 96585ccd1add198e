"""Files that are either whole or absent, whatever moment the process is killed at."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path`; what is written there replaces `path` atomically, if all goes well."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, survives a power cut
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Append one line and hand it to the disk; a line cut by a kill is removed first."""
    with path.open("ab+") as file:
        end = file.tell()
        if end:
            file.seek(max(0, end - (1 << 20)))
            tail = file.read()
            if not tail.endswith(b"\n"):
                file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> object:
    """The value in `path`; a file that is not JSON is a ValueError in one line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file, or a damaged one ({error})") from error


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder` and below it."""
    for path in folder.rglob("*.tmp-*"):
        with contextlib.suppress(OSError):
            path.unlink()
