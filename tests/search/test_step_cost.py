"""What a step may not do: wait for the device, or loop over parameters in Python."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mae_nas.cli.build import build
from mae_nas.cli.compose import compose
from mae_nas.masking import Masking
from mae_nas.search import BilevelSettings, SearchModule
from mae_nas.search.optimizers import keep_rates_on, make_fused
from mae_nas.spaces import S0, S3, S4, SearchSpace
from mae_nas.supernet import CellMaker, FusedCell, ReferenceCell

Make = Callable[..., SearchModule]
aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense,
    aten.item,
    aten.nonzero,
    aten.masked_select,
    aten.is_nonzero,
    aten.equal,
    aten.unique_consecutive,
    aten._unique2,
}
FUSED = partial(FusedCell, compiles=False)  # as on a device; our kernel's tables are a CPU's
HOST = {"cpu", "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"}
HOST |= {"__array__", "to_list"}


class Operations(TorchDispatchMode):
    """Counts the operations, lists them with their shapes, and notes those that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.done: list[tuple[str, tuple[torch.Size, ...]]] = []
        self.waiting: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        name = str(func)
        self.count[name] += 1
        # Of tensors and lists of tensors: nothing that an operation takes is nested deeper.
        leaves = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else (arg,))]
        shapes = tuple(leaf.shape for leaf in leaves if isinstance(leaf, Tensor))
        self.done.append((name, shapes))
        indices = args[1] if func.overloadpacket in (aten.index, aten.index_put_) else ()
        has_boolean = any(i is not None and i.dtype == torch.bool for i in indices)
        if func.overloadpacket in WAITING or has_boolean:
            self.waiting.append(name)
        return func(*args, **(kwargs or {}))


class HostCalls(TorchFunctionMode):
    """Notes calls of tensor methods that bring values to the host, which a CPU would not show."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        name = getattr(func, "__name__", "")
        # A device object is the one the tensor came from (torch's clipping says it so).
        if name in HOST or (name == "to" and "cpu" in [a for a in args if isinstance(a, str)]):
            self.waiting.append(name)
        return func(*args, **(kwargs or {}))


class Watched(pl.Callback):
    """Watches each whole training step."""

    def __init__(self) -> None:
        self.steps: list[tuple[Operations, HostCalls]] = []
        self._stack = ExitStack()

    def on_train_batch_start(self, *_: object) -> None:
        watchers = Operations(), HostCalls()
        self.steps.append(watchers)
        for watcher in watchers:
            self._stack.enter_context(watcher)

    def on_train_batch_end(self, *_: object) -> None:
        self._stack.close()


@pytest.fixture
def real(make_search: Callable[..., tuple], settings: Callable[..., BilevelSettings]) -> Make:
    def make(
        space: SearchSpace, mode: str, second_order: bool, make_cell: CellMaker
    ) -> SearchModule:
        masking = Masking(patch_size=4, mode=mode)  # type: ignore[arg-type]
        parts = make_search(space, masking=masking, make_cell=make_cell)
        return SearchModule(*parts, settings(second_order=second_order), 4, 10)

    return make


@pytest.mark.parametrize(
    ("space", "mode", "second_order", "make_cell"),
    [
        (S3, "dense", False, ReferenceCell),
        pytest.param(S3, "sparse", True, ReferenceCell, marks=pytest.mark.slow),
        pytest.param(S4, "dense", True, ReferenceCell, marks=pytest.mark.slow),
        (S4, "sparse", False, ReferenceCell),
        pytest.param(S0, "dense", False, FUSED, marks=pytest.mark.slow),
        (S0, "sparse", False, FUSED),
        (S3, "sparse", True, FUSED),
        pytest.param(S4, "dense", False, FUSED, marks=pytest.mark.slow),
    ],
)
def test_a_step_never_waits_for_the_device(
    real: Make,
    fit: Make,
    on_five_edges: Callable[..., SearchSpace],
    space: type[SearchSpace],
    mode: str,
    second_order: bool,
    make_cell: CellMaker,
) -> None:
    watched = Watched()
    fit(real(on_five_edges(space), mode, second_order, make_cell), 3, [watched])
    for operations, host in watched.steps:
        assert operations.waiting == []
        assert host.waiting == []
        assert operations.count.total() > 100  # something was watched
    # The first steps make optimizer state; from then on every step does the same, in the same order
    # and shapes, as a graph that is captured once needs it. (Two numbers of the host would still
    # have to become tensors: a batch's key, of which masks are drawn, and the step's own.)
    assert watched.steps[1][0].done == watched.steps[2][0].done


@pytest.mark.parametrize("second_order", [False, True])
def test_a_new_learning_rate_reaches_a_step_that_is_the_same(
    smooth: Make, fit: Make, second_order: bool
) -> None:
    """On a device, rates lie in tensors: a captured step would read them anew."""
    found = []
    for on_device in (False, True):
        module = smooth(epochs=4, second_order=second_order)
        watched = Watched()

        class Placed(pl.Callback):
            def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
                keep_rates_on(torch.device("cpu"), trainer.optimizers)

        fit(module, 4, [*([Placed()] if on_device else []), watched])
        rates = [group["lr"] for o in module.optimizer_pair for group in o.param_groups]
        assert [isinstance(rate, Tensor) for rate in rates] == [on_device] * 2
        found.append(torch.cat([x.detach().flatten() for x in (*module.weights, *module.alphas)]))
    assert float(rates[0]) == pytest.approx(0.001 + 0.012 * (1 + math.cos(0.75 * math.pi)))
    assert all(step[0].waiting == step[1].waiting == [] for step in watched.steps)
    assert watched.steps[1][0].done == watched.steps[2][0].done
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_making_batches_never_waits_for_the_device(
    smooth: Make, fit: Make, accumulate: int
) -> None:
    operations, host = Operations(), HostCalls()

    class Transfer(pl.Callback):
        def on_train_batch_start(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
        ) -> None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            with operations, host:
                data.on_after_batch_transfer(pl_module.global_step, 0)

    fit(smooth(), 3, [Transfer()], accumulate=accumulate)
    assert operations.count.total() > 10
    assert operations.waiting == []
    assert host.waiting == []


@pytest.mark.parametrize("which", ["weight_optimizer", "arch_optimizer"])
def test_optimizers_do_not_loop_over_parameters(which: str) -> None:
    """The shipped configuration's: as many operations for thirty parameters as for three."""
    settings = build(BilevelSettings, compose([]).config["search"], {}, "search")
    counts = []
    for size in (3, 30):
        parameters = [nn.Parameter(torch.randn(2, 5)) for _ in range(size)]
        optimizer = make_fused(getattr(settings, which), parameters)
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            with Operations() as operations:
                nn.utils.clip_grad_norm_(parameters, 5.0, foreach=True)
                optimizer.step()
        counts.append(operations.count)
    assert _without_views(counts[0]) == _without_views(counts[1])


def _without_views(count: Counter[str]) -> Counter[str]:
    return Counter({name: n for name, n in count.items() if "unbind" not in name})


def test_watchers_see_what_they_watch_for() -> None:
    x: Tensor = torch.arange(3.0)
    with Operations() as operations, HostCalls() as host:
        x.nonzero()
        x[x > 1]
        x.sum().item()
        bool(x.sum() > 0)
        x.cpu()
        x.to("cpu")
        x.tolist()
    assert len(operations.waiting) >= 4
    assert {"item", "cpu", "to", "tolist"} <= set(host.waiting)
