"""How fast a search step is, in several ways side by side in one process.

A step is one update of w and one of α, decoder, loss and optimizers included, data left out. On a
CPU it is timed in processor time of one thread, which other work on the computer disturbs least.

How far a way is from what the computer can do is told by two fractions: of the rate at which it
multiplies matrices, and of that at which it copies memory. The work is what any way must do: the
multiply-adds of the definition, counted once for outputs, once for their inputs' gradients and, in
the update of w, once for the weights', at visible sites (the decoder's few too); and every byte
that the way keeps for the gradients of w and α together, written once and read once in each update.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mae_nas.backbone import CellState
from mae_nas.batch import Batch
from mae_nas.decoders import HierarchicalDecoder
from mae_nas.masking import Masking, VisibleMap
from mae_nas.network.complexity import count_multiply_adds, kept_bytes
from mae_nas.objectives import Reconstruction
from mae_nas.relaxations import DARTS, Mixture
from mae_nas.search.module import frozen
from mae_nas.search.optimizers import make_fused
from mae_nas.spaces import S0
from mae_nas.supernet import CellMaker, FusedCell, ReferenceCell, Supernet, SupernetSize


@dataclass(frozen=True)
class Way:
    """A way to compute a step.

    Args:
        make_cell: of the supernet.
        sparse_ratio: of hidden patches that are not computed; None: dense.
        foreach: optimizers in grouped operations or a tensor at a time; None: as a search steps.
        is_naive: as DARTS published it: channels first, gradients of all weights in both updates.
    """

    make_cell: CellMaker
    sparse_ratio: float | None = None
    foreach: bool | None = None
    is_naive: bool = False


WAYS: Mapping[str, Way] = {
    "naive": Way(ReferenceCell, foreach=False, is_naive=True),
    "reference": Way(ReferenceCell, foreach=True),
    "fused-torch": Way(partial(FusedCell, compiles=False)),
    "fused-cpp": Way(FusedCell),
    "fused-cpp-recompute": Way(partial(FusedCell, recomputes=True)),
    "fused-cpp-sparse50": Way(FusedCell, 0.5),
    "fused-cpp-sparse75": Way(FusedCell, 0.75),
    "fused-cpp-sparse50-recompute": Way(partial(FusedCell, recomputes=True), 0.5),
    "fused-cpp-sparse75-recompute": Way(partial(FusedCell, recomputes=True), 0.75),
}


GROWING = ("naive", "reference", "fused-torch", "fused-cpp", "fused-cpp-sparse75")
"""Ways whose growth is worth a picture."""


@dataclass(frozen=True)
class Setting:
    """What is computed.

    Args:
        width: of the supernet, in the space S0.
        depth: of the supernet.
        side: of the images, in pixels, with three channels.
        batch: images in each half of a step.
    """

    width: int
    depth: int
    side: int
    batch: int


def compare_ways(
    setting: Setting,
    ways: Sequence[str],
    repeats: int,
    on_step: Callable[[], None],
    with_wall: bool = False,
) -> list[dict[str, Any]]:
    """A row for each way: seconds, ratio to the first way, memory, operations, fractions.

    Args:
        setting: of all ways.
        ways: names; the first is what others are compared with.
        repeats: rounds in which every way takes its turn; times are medians.
        on_step: called after each timed step, `repeats` for each way.
        with_wall: also by the clock on the wall, with a thread for each processor.
    """
    steps = {name: _Step(WAYS[name], setting) for name in ways}
    rows = {name: _row(name, step) for name, step in steps.items()}  # the first steps, untimed
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            seconds[name].append(_timed(step, time.process_time))
            on_step()
    wall = _wall_seconds(steps) if with_wall else {}
    copied, multiplied = copy_rate(), multiplication_rate()
    least = multiply_adds(setting)
    first = statistics.median(seconds[ways[0]])
    for name, row in rows.items():
        median = statistics.median(seconds[name])
        kept = 4 * row["saved_mb"] * 1e6  # written and read, in both updates
        row |= {"seconds": median, "least": min(seconds[name]), "most": max(seconds[name])}
        row |= {"ratio": first / median, "wall_all_threads": wall.get(name)}
        share = 1 - (WAYS[name].sparse_ratio or 0)
        row["of_copy_rate"] = kept / median / copied
        row["of_multiplication_rate"] = least * share / median / multiplied
    return list(rows.values())


def growth(setting: Setting, repeats: int, on_step: Callable[[], None]) -> list[dict[str, Any]]:
    """Rows of `compare_ways` with side and width, each halved and doubled, with few images."""
    few = replace(setting, batch=max(2, setting.batch // 8))
    settings = [few] + [
        replace(few, **{key: value})
        for key in ("side", "width")
        for value in (getattr(few, key) // 2, getattr(few, key) * 2)
    ]
    return [
        {"side": each.side, "width": each.width, "batch": each.batch, **row}
        for each in settings
        for row in compare_ways(each, GROWING, repeats, on_step)
    ]


def multiply_adds(setting: Setting) -> float:
    """What a dense step needs by its definition, see above."""
    step = _Step(WAYS["reference"], setting)
    return count_multiply_adds(step.loss) * (3 + 2)  # w: outputs, inputs, weights; α: without these


def copy_rate(megabytes: int = 256, repeats: int = 5) -> float:
    """Bytes a second that are read and as many written, by one thread: of both together."""
    x = torch.ones(megabytes << 18)
    y = torch.empty_like(x)
    return 2 * x.nbytes / min(_timed(lambda: y.copy_(x), time.process_time) for _ in range(repeats))


def multiplication_rate(side: int = 1024, repeats: int = 5) -> float:
    """Multiply-adds a second of a large product of matrices in float32, by one thread."""
    x = torch.ones(side, side)
    return side**3 / min(_timed(lambda: x @ x, time.process_time) for _ in range(repeats))


def _timed(run: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    run()
    return clock() - began


def _wall_seconds(steps: Mapping[str, Callable[[], None]], repeats: int = 3) -> dict[str, float]:
    """Of a step, in which all processors share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        return {
            name: statistics.median(_timed(step, time.monotonic) for _ in range(repeats))
            for name, step in steps.items()
        }
    finally:
        torch.set_num_threads(threads)


class _Step:
    """Both updates, by one way."""

    def __init__(self, way: Way, setting: Setting) -> None:
        space, side, self.way = S0(), setting.side, way
        torch.manual_seed(0)
        plan = SupernetSize(setting.width, setting.depth).plan(space, side)
        mode = "dense" if way.sparse_ratio is None else "sparse"
        masking = Masking(way.sparse_ratio or 0.5, min(8, side // 4), mode)
        decoder = HierarchicalDecoder(plan.features, 3)
        self.objective = Reconstruction(decoder, plan.features, side, masking)
        make = _NaiveSupernet if way.is_naive else Supernet
        self.supernet = make(space, 3, 3, plan, way.make_cell)
        self.relaxation = DARTS(space)
        self.weights = [*self.supernet.parameters(), *self.objective.parameters()]
        self.alphas = list(self.relaxation.parameters())
        options: dict[str, Any] = {"momentum": 0.9, "weight_decay": 3e-4, "foreach": way.foreach}
        sgd = partial(torch.optim.SGD, lr=0.025, **options)
        adam = partial(torch.optim.Adam, lr=3e-4, betas=(0.5, 0.999), foreach=way.foreach)
        self.of_weights = make_fused(sgd, self.weights)
        self.of_alphas = make_fused(adam, self.alphas)
        self.batch = Batch(
            torch.randn(setting.batch, 3, side, side), torch.arange(setting.batch), 1
        )

    def loss(self) -> Tensor:
        mixtures = self.relaxation.mixture()

        def encode(image: Tensor, visible: VisibleMap | None) -> Sequence[Tensor]:
            return self.supernet(image, mixtures, visible)

        return self.objective(encode, self.batch)[0]

    def __call__(self) -> None:
        self._update(self.alphas, self.weights, self.of_alphas)
        self._update(self.weights, self.alphas, self.of_weights)

    def _update(
        self,
        mine: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        if self.way.is_naive:
            self.loss().backward()
        else:
            with frozen(others):
                self.loss().backward()
        if mine is self.weights:
            nn.utils.clip_grad_norm_(mine, 5.0, foreach=not self.way.is_naive)
        optimizer.step()
        for parameter in (*mine, *others):
            parameter.grad = None


class _NaiveSupernet(Supernet):
    """Channels first, as DARTS published it."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 - those of a supernet
        super().__init__(*arguments)
        self.to(memory_format=torch.contiguous_format)

    def forward(
        self, image: Tensor, mixtures: Mapping[str, Mixture], visible: VisibleMap | None = None
    ) -> Sequence[Tensor]:
        assert visible is None

        def run(cell: nn.Module, before_last: CellState, last: CellState) -> CellState:
            assert isinstance(cell, ReferenceCell)
            return cell(before_last, last, mixtures[cell.spec.kind], None)

        stem = self.backbone.stem(image, None)
        return self.backbone.run([ReferenceCell.enter(state) for state in stem], run)


def _row(name: str, step: _Step) -> dict[str, Any]:
    saved = kept_bytes(step.loss, [*step.weights, *step.alphas]) / 1e6
    with _Operations() as counted:
        step()
    backend = step.supernet.implementation
    return {"name": name, "saved_mb": saved, "operations": counted.count, "backend": backend}


class _Operations(TorchDispatchMode):
    """Counts what torch would launch a kernel for; our compiled kernel counts as nothing."""

    count = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's
        del types
        self.count += not func.is_view and "empty" not in func.__name__
        return func(*args, **(kwargs or {}))
