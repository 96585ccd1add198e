"""Files that are either whole or absent, whatever moment the process is killed at."""

import contextlib
import json
import os
from pathlib import Path

STALE = "*.tmp-*"


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` atomically: a temporary file beside it, fsync, os.replace."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON, atomically; a value that JSON has no word for is a ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=True) + "\n")


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


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder` and below it."""
    for path in folder.rglob(STALE):
        with contextlib.suppress(OSError):
            path.unlink()
