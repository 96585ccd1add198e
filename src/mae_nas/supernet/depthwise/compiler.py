"""Compiles the CPU kernel once per computer, and keeps it where nobody else may write.

What is loaded here runs as the user: a file is named by the source, compiler and processor that it
was made for and by its own content, and must be the user's own.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("mae_nas")

_SOURCE = Path(__file__).with_name("kernel.cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 120


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernel, compiled now or before; None where that is not possible, told in one line."""
    try:
        return ctypes.CDLL(str(built(_folder())))
    except (OSError, subprocess.SubprocessError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.info("depthwise convolutions by torch, slower than by our own kernel: %s", reason)
        return None


def built(folder: Path) -> Path:
    """The shared library in `folder`, compiled unless it is there, whole and our own.

    Raises:
        OSError: no compiler, no place to write, or a folder or file that others may write.
        subprocess.SubprocessError: the compiler failed.
    """
    found = os.environ.get("CXX") or next(filter(None, map(shutil.which, _COMPILERS)), None)
    if found is None:
        raise OSError("there is no C++ compiler (CXX names one)")
    compiler = _words(found)
    if shutil.which(compiler[0]) is None:
        raise OSError(f"CXX={found}: no such program")
    for place in (folder.parent, folder):  # the mode is that of the last folder made
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_ours(place)
    key = _key(compiler)
    damaged = []  # cut short, or changed; another process may just have put a whole one beside it
    for file in folder.glob(f"{key}-*.so"):
        with suppress(FileNotFoundError):  # damaged, and removed by another process just now
            _check_ours(file)
            if file.stem == f"{key}-{_digest(file.read_bytes())}":
                return file
            damaged.append(file)
    with tempfile.TemporaryDirectory(dir=folder) as room:
        made = Path(room) / "kernel.so"
        log.info("compiling a kernel for this computer, once, a few seconds: %s", found)
        _run([*compiler, *_FLAGS, str(_SOURCE), "-o", str(made)])
        made.chmod(0o600)
        for old in damaged:
            old.unlink(missing_ok=True)
        return made.replace(folder / f"{key}-{_digest(made.read_bytes())}.so")


def _words(command: str) -> list[str]:
    """A compiler and what goes before it: ccache g++."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise OSError(f"CXX={command}: {error}") from None
    if not words:
        raise OSError("CXX: names no program")
    return words


def _folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(root).expanduser().absolute() / "mae_nas" / "kernels"
    except RuntimeError as error:  # a user without a home
        raise OSError(f"no place for it: {error} Set XDG_CACHE_HOME") from None


def _check_ours(path: Path) -> None:
    if not hasattr(os, "getuid"):
        raise OSError("whose files are whose is not known on this system")
    status = path.lstat()
    is_link = stat.S_ISLNK(status.st_mode)
    if is_link or status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{path} is not only yours to write: delete it, or set XDG_CACHE_HOME")


def _key(compiler: list[str]) -> str:
    """Changes with whatever the compiled code depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = (
        re.search(r"(?:flags|Features)\s*:(.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    )
    processor = flags[1] if flags else platform.processor()
    version = _run([*compiler, "--version"])
    parts = (_SOURCE.read_text(), version, " ".join(_FLAGS), platform.machine(), processor)
    return _digest("\n".join(parts).encode())


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise OSError(f"{command[0]} failed: {said}")
    return done.stdout


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
