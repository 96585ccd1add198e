"""The Triton kernels: run by an interpreter, compiled for GPUs that need not be there, or missing.

None of this shows how fast they are.
"""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mae_nas.supernet.depthwise import Convolutions, Form, choose, plain, serving, triton
from mae_nas.supernet.sites import Sites

pytest.importorskip("triton", reason="torch came without triton, as it does for CPUs")

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mae_nas.supernet.depthwise import triton_kernels, triton_launch

FORMS = [Form(*form) for form in sorted(triton.FORMS)]


def run(marked: str, **environment: str) -> None:
    file = Path(__file__).with_name("interpreted_triton.py")
    command = [sys.executable, "-m", "pytest", str(file), "-m", marked, "-p", "no:cacheprovider"]
    known = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(
        command, env={**known, **environment}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "skipped" not in ran.stdout


@pytest.mark.slow
def test_outputs_and_gradients_under_the_interpreter() -> None:
    run("not slow", TRITON_INTERPRET="1")


@pytest.mark.slow
def test_all_outputs_and_gradients_under_the_interpreter() -> None:
    run("slow", TRITON_INTERPRET="1")


@pytest.mark.gpu
def test_outputs_and_gradients_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    run("slow or not slow")


class Recorder:
    """In a kernel's place: what it would be called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> "Recorder":
        assert all(programs > 0 for programs in grid)
        return self

    def __call__(self, *arguments: object, **constants: object) -> None:
        self.calls.append((arguments, constants))


def sources(
    form: Form, dtype: torch.dtype, channels: int, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ASTSource, dict[str, Any]]]:
    """Of the three kernels, as a step would have them compiled, and with what options."""
    visible = (torch.arange(64).view(8, 8) % 2 == 0).expand(2, 1, 8, 8)
    packed = 32 if is_packed else None
    source, target = Sites(2, 8, 8, visible, packed), Sites(2, 8, 8, visible, packed)
    x = torch.empty(source.rows, channels, dtype=dtype)
    weight = torch.empty(1, form.kernel, form.kernel, channels, dtype=dtype)
    edges = Convolutions(form, [x], weight, source, target)
    for name in ("correlate", "gather_taps"):
        kernel, recorder = getattr(triton_kernels, name), Recorder()
        with monkeypatch.context() as patch:
            patch.setattr(triton_kernels, "correlate", Recorder())
            patch.setattr(triton_kernels, "gather_taps", Recorder())
            patch.setattr(triton_kernels, name, recorder)
            triton_launch.compute(edges, None, [x])
            triton_launch.differentiate(edges, [x], [x], True)
        for arguments, constants in recorder.calls:
            options = {each: constants.pop(each) for each in ("num_warps", "ptx_options")}
            yield _source(kernel, arguments, constants), options


def _source(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> ASTSource:  # noqa: ANN401
    signature: dict[str, object] = dict.fromkeys(constants, "constexpr")
    attributes = {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        signature[name] = _type(value)
        if value is None:
            constants = {**constants, name: None}
        for path, leaf in _leaves(value, (place,)):
            if isinstance(leaf, Tensor) or (len(path) > 1 and leaf % 16 == 0):
                attributes[path] = [["tt.divisibility", 16]]
    signature = {name: signature[name] for name in kernel.arg_names}
    return ASTSource(kernel, signature, constants, attributes)


def _leaves(value: object, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Any]]:
    if isinstance(value, tuple):
        for place, each in enumerate(value):
            yield from _leaves(each, (*path, place))
    elif value is not None:
        yield path, value


def _type(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_type, value))
    if isinstance(value, Tensor):
        name = str(value.dtype).removeprefix("torch.")
        return "*" + name.replace("bfloat", "bf").replace("float", "fp").replace("int", "i")
    return "constexpr" if value is None else "i32"


def check_compiled(
    source: ASTSource, options: dict[str, Any], architecture: int, folder: Path
) -> None:
    """Nothing spilled, little shared memory, and 16 bytes of a row at once."""
    import triton as package

    target = GPUTarget("cuda", architecture, 32)
    built: Any = compile_kernel(source, target=target, options=options)
    file = folder / "kernel.cubin"
    file.write_bytes(built.asm["cubin"])
    tool = Path(package.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool), "--dump-resource-usage", str(file)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    assert found[2] == "0", usage
    assert built.metadata.shared < 100_000
    loads = re.findall(r"ld\.global[.\w:]*", built.asm["ptx"])
    assert any(".v4." in load or ".v2.b64" in load for load in loads), loads


def test_edges_of_a_form_share_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    correlate, gather = Recorder(), Recorder()
    monkeypatch.setattr(triton_kernels, "correlate", correlate)
    monkeypatch.setattr(triton_kernels, "gather_taps", gather)
    sites, x = Sites(1, 4, 4), list(torch.zeros(4, 16, 8))
    edges = Convolutions(Form(3, 1, 1), x, torch.zeros(4, 3, 3, 8), sites, sites)
    triton_launch.compute(edges, None, x)
    assert (len(correlate.calls), len(gather.calls)) == (1, 0)
    # Programs run at once, so a gradient that only some of the edges share takes several launches.
    for to_x, launches in ((x, 1), ([x[0]] * 4, 1), ([x[0], x[1], x[0], x[2]], 4)):
        correlate.calls.clear()
        gather.calls.clear()
        triton_launch.differentiate(edges, x, to_x, True)
        assert (len(correlate.calls), len(gather.calls)) == (launches, 1)


class NoWaiting(TorchDispatchMode):
    """Fails where a host would wait for its device."""

    def __torch_dispatch__(
        self,
        function: Any,  # noqa: ANN401 - torch's
        types: object,
        arguments: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
    ) -> object:
        name = str(function)
        assert not any(each in name for each in ("_local_scalar", "nonzero", "equal")), name
        return function(*arguments, **(keywords or {}))


def test_the_host_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels, "correlate", Recorder())
    monkeypatch.setattr(triton_kernels, "gather_taps", Recorder())
    visible = (torch.arange(64).view(8, 8) % 2 == 0).expand(2, 1, 8, 8)
    x, weight = [torch.zeros(64, 8)] * 2, torch.zeros(2, 3, 3, 8)
    with NoWaiting():
        sites = Sites(2, 8, 8, visible, 32)
        edges = Convolutions(Form(3, 1, 1), x, weight, sites, sites)
        triton_launch.compute(edges, None, x)
        triton_launch.differentiate(edges, x, x, True)
        with pytest.raises(AssertionError, match="nonzero"):
            visible.nonzero()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("dtype", "channels", "architecture"),
    [
        (torch.float32, 64, 90),
        (torch.bfloat16, 32, 90),
        (torch.bfloat16, 64, 80),
        pytest.param(torch.float32, 16, 90, marks=pytest.mark.slow),
        pytest.param(torch.float32, 32, 90, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 16, 90, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 64, 90, marks=pytest.mark.slow),
    ],
)
def test_the_kernels_compile_without_spills(
    dtype: torch.dtype,
    channels: int,
    architecture: int,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for source, options in sources(Form(5, 1, 1), dtype, channels, True, monkeypatch):
        check_compiled(source, options, architecture, cache)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "channels"), [(80, 64), (90, 24)])
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_every_kernel_compiles_without_spills(
    form: Form,
    dtype: torch.dtype,
    channels: int,
    is_packed: bool,
    architecture: int,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for source, options in sources(form, dtype, channels, is_packed, monkeypatch):
        check_compiled(source, options, architecture, cache)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Nothing was compared before, nor afterwards."""
    forms = set(triton.FORMS)
    triton._passes.cache_clear()
    yield
    triton._passes.cache_clear()
    triton.FORMS.update(forms)


def off_by(amount: float, *arguments: Any) -> None:  # noqa: ANN401
    plain.forward(*arguments)
    for out in arguments[-1]:
        out += amount


def failing(*_: object) -> None:
    raise RuntimeError("no such GPU\nand more")


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda *arguments: off_by(1e-3, *arguments), "results differ by"),
        (lambda *arguments: off_by(float("nan"), *arguments), "results differ by nan"),
        (failing, "RuntimeError: no such GPU"),
    ],
)
def test_what_is_wrong_is_left_to_torch(
    wrong: object,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(triton_launch, "compute", wrong)
    monkeypatch.setattr(triton_launch, "differentiate", plain.backward)
    caplog.set_level(logging.INFO, "mae_nas")
    sites = Sites(2, 6, 6)
    x, weight, shift = torch.randn(72, 8), torch.randn(2, 3, 3, 8), torch.randn(2, 8)
    found, expected = torch.empty(2, 72, 8), torch.empty(2, 72, 8)
    before = torch.get_rng_state()
    for width in (8, 16, 8):  # another width would be another binary
        given = [x.repeat(1, width // 8)] * 2, weight.repeat(1, 1, 1, width // 8)
        wider = Convolutions(Form(3, 1, 1), *given, sites, sites)
        triton.forward(wider, None, list(torch.empty(2, 72, width)))
    edges = Convolutions(Form(3, 1, 1), [x, x], weight, sites, sites)
    triton.forward(edges, shift, list(found))
    plain.forward(edges, shift, list(expected))
    assert torch.equal(found, expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert serving(triton, Form(3, 1, 1)) is plain  # as a cell's `implementation` then says
    assert serving(triton, Form(3, 2, 1)) is triton
    [line] = caplog.messages
    assert told in line
    assert "and more" not in line


@pytest.mark.usefixtures("forgotten")
def test_what_is_right_is_not_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(triton_launch, "compute", lambda *given: off_by(0, *given))
    monkeypatch.setattr(triton_launch, "differentiate", plain.backward)
    caplog.set_level(logging.INFO, "mae_nas")
    sites = Sites(1, 4, 4)
    edges = Convolutions(Form(5, 1, 1), [], torch.randn(1, 5, 5, 8), sites, sites)
    assert triton._chosen(edges)[0] is triton_launch.compute
    assert not caplog.messages


def test_without_triton_torch_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("triton_launch", "triton_kernels"):
        monkeypatch.delitem(sys.modules, f"mae_nas.supernet.depthwise.{name}")
        monkeypatch.delattr(f"mae_nas.supernet.depthwise.{name}")
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    caplog.set_level(logging.INFO, "mae_nas")
    triton._launch.cache_clear()
    try:
        for _, kind in product(range(2), (torch.float16, torch.bfloat16)):
            assert choose(torch.empty(5, 8, dtype=kind)) is plain
    finally:
        triton._launch.cache_clear()
    [line] = caplog.messages
    assert "triton" in line


def test_a_cpu_neither_needs_nor_loads_it() -> None:
    code = (
        "import sys, torch; from mae_nas.supernet import depthwise;"
        "depthwise.choose(torch.empty(5, 8)); assert 'triton' not in sys.modules"
    )
    known = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], check=True, env=known)


def test_tables_of_packed_rows_are_each_others_inverse() -> None:
    visible = torch.rand(3, 1, 4, 6).argsort(3) < 2
    sites = Sites(3, 4, 6, visible, 8)
    assert sites.site_of is not None
    assert sites.row_of is not None
    assert torch.equal(sites.row_of >= 0, visible.flatten())
    assert torch.equal(sites.row_of[sites.site_of].long(), torch.arange(24))
    assert Sites(3, 4, 6).row_of is Sites(3, 4, 6).site_of is None
