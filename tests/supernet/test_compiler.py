"""The kernel's private cache, and life without a compiler."""

import ctypes
import logging
import os
from pathlib import Path

import pytest
import torch

from mae_nas.supernet.depthwise import choose, compiler, plain

HAS_COMPILER = compiler.library() is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; its kernel is a function of one line, compiled in a moment."""
    source = tmp_path / "kernel.cpp"
    source.write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setattr(compiler, "_SOURCE", source)
    return tmp_path / "cache" / "kernels"


@needs_compiler
def test_it_is_compiled_once_and_privately(folder: Path) -> None:
    file = compiler.built(folder)
    made = file.stat()
    assert ctypes.CDLL(str(file)).answer() == 42
    assert (folder.stat().st_mode & 0o777, made.st_mode & 0o777) == (0o700, 0o600)
    assert compiler.built(folder) == file
    assert file.stat().st_mtime_ns == made.st_mtime_ns
    assert list(folder.iterdir()) == [file]


@needs_compiler
def test_another_source_is_another_kernel(folder: Path) -> None:
    first = compiler.built(folder)
    compiler._SOURCE.write_text('extern "C" int answer() { return 43; }')
    second = compiler.built(folder)
    assert first != second
    assert ctypes.CDLL(str(second)).answer() == 43


@needs_compiler
@pytest.mark.parametrize("spoil", [b"", b"\x7fELF and then nothing"])
def test_a_spoilt_file_is_compiled_again(folder: Path, spoil: bytes) -> None:
    file = compiler.built(folder)
    file.write_bytes(spoil)
    assert compiler.built(folder) == file
    assert ctypes.CDLL(str(file)).answer() == 42


@needs_compiler
@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_what_others_could_have_written_is_refused(folder: Path, what: str) -> None:
    file = compiler.built(folder)
    if what == "link":
        other = folder.parent / "other.so"
        file.rename(other)
        file.symlink_to(other)
    else:
        (file if what == "file" else folder).chmod(0o777)
    with pytest.raises(OSError, match="is not only yours to write"):
        compiler.built(folder)


@needs_compiler
def test_a_group_that_may_write_by_default_may_not_write_here(folder: Path) -> None:
    before = os.umask(0o002)
    try:
        file = compiler.built(folder)
        assert compiler.built(folder) == file
    finally:
        os.umask(before)


@needs_compiler
def test_a_damaged_file_that_another_process_removes_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = compiler.built(folder)
    gone = file.with_name(f"{file.name.partition('-')[0]}-0.so")
    listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [gone, *listed(self, pattern)])
    assert compiler.built(folder) == file


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"CXX": '"g++'}, 'CXX="g++: No closing quotation'),
        ({"CXX": "  "}, "CXX: names no program"),
        ({"XDG_CACHE_HOME": "~nobody-of-that-name/x"}, "no place for it: Could not determine"),
    ],
)
def test_an_environment_that_makes_no_sense_is_torch_and_one_line(
    variables: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    compiler.library.cache_clear()
    with caplog.at_level("INFO", "mae_nas"):
        assert compiler.library() is None
    compiler.library.cache_clear()
    (line,) = caplog.messages
    assert said in line


def test_without_a_compiler_it_is_torch_and_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    compiler.library.cache_clear()
    try:
        with caplog.at_level(logging.INFO, "mae_nas"):
            for _ in range(2):
                assert choose(torch.empty(4, 16)) is plain
    finally:
        compiler.library.cache_clear()
    (line,) = caplog.messages
    assert line.endswith("slower than by our own kernel: there is no C++ compiler (CXX names one)")
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++ -O1")
    with pytest.raises(OSError, match=r"CXX=/nowhere/c\+\+ -O1: no such program"):
        compiler.built(tmp_path / "kernels")
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_fails_is_torch_and_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    broken = tmp_path / "c++"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no such option" >&2\nexit 1'
    )
    broken.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(broken))
    compiler.library.cache_clear()
    try:
        with caplog.at_level(logging.INFO, "mae_nas"):
            assert choose(torch.empty(4, 16)) is plain
    finally:
        compiler.library.cache_clear()
    assert caplog.messages[-1].endswith(f"{broken} failed: no such option")
    assert not list((tmp_path / "mae_nas" / "kernels").iterdir())


def test_where_compiling_is_not_wanted_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler.library.cache_clear()
    try:
        assert choose(torch.empty(4, 16), allowed=False) is plain
    finally:
        compiler.library.cache_clear()
    assert not list(tmp_path.iterdir())
