import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mae_nas.cli.search import SearchRun
from mae_nas.runs.measure import is_out_of_memory, measure_step

Prepared = Callable[..., SearchRun]


def streams() -> tuple[object, ...]:
    return random.getstate(), *np.random.get_state()[1:3], torch.get_rng_state()  # noqa: NPY002


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor | np.ndarray):
        return bool((one == other).all())
    return one == other


@pytest.mark.parametrize(
    "way",
    [
        ["space=s4"],  # its noise is the only draw from torch's own stream
        ["efficiency.resident=false", "efficiency.workers=1", "search.second_order=true"],
        pytest.param(["trainer.precision=64-true", "trainer.accumulate=2"], marks=pytest.mark.slow),
    ],
)
def test_a_search_is_the_same_after_its_steps_were_measured(
    prepared: Prepared, way: list[str]
) -> None:
    measured, other = prepared(*way), prepared(*way)
    before, state = streams(), measured.module.state_dict()
    state = {name: value.clone() for name, value in state.items()}
    cost = measure_step(measured.module, measured.data, measured.settings, 3)
    assert cost.seconds > 0
    assert all(map(same, before, streams()))
    for name, value in measured.module.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert measured.module.training
    assert all(weight.grad is None for weight in measured.module.parameters())
    for run in (measured, other):
        trainer = run.settings.make(2, [], run.folder.path)
        trainer.fit(run.module, datamodule=run.data)
    others = other.module.state_dict()
    for name, value in measured.module.state_dict().items():
        assert torch.equal(value, others[name]), name
    assert all(map(same, measured.module.values.values(), other.module.values.values()))


def watch(run: SearchRun, bytes_per_image: int = 4) -> list[int]:
    """How many images come at a time; for each of them so much memory is held for a moment."""
    seen = []

    def look(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(len(inputs[0]))
        torch.ones(len(inputs[0]) * bytes_per_image // 4).sum()

    run.module.supernet.register_forward_pre_hook(look)
    return seen


@pytest.mark.parametrize("warmup", [0, 1])
def test_both_levels_are_stepped_in_micro_batches_of_a_rank(
    prepared: Prepared, warmup: int
) -> None:
    run = prepared("trainer.accumulate=2", "data.batch_size=8", f"search.warmup_epochs={warmup}")
    seen = watch(run)
    settings = replace(run.settings, devices=2)  # as one of two ranks would be
    assert measure_step(run.module, run.data, settings, 2).images == 2
    assert seen == [2] * (2 * 2 * 2)  # two steps of two levels of two micro-batches


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_is_that_of_the_steps_and_not_of_what_came_before(prepared: Prepared) -> None:
    torch.ones(100 << 20).sum()  # 400 MiB, given back
    run = prepared()
    watch(run, 64 << 20)
    four = measure_step(run.module, run.data, run.settings, 2)
    one = measure_step(run.module, run.data, replace(run.settings, accumulate=4), 2)
    assert (four.images, one.images) == (4, 1)
    grown = [cost.peak_bytes - cost.fixed_bytes for cost in (four, one)]
    assert 176 << 20 < grown[0] - grown[1] < 208 << 20  # of three images
    assert 48 << 20 < grown[1] < 112 << 20
    assert four.peak_bytes < four.device_bytes


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_is_exhausted(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one
