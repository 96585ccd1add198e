import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from mae_nas.batch import Batch
from mae_nas.data import ImageSource, ImageStore, SearchData, Synthetic
from mae_nas.data.gather import Cutter
from mae_nas.data.loading import store_of_arrays
from mae_nas.data.source import Progress
from mae_nas.data.steps import BILEVEL, HostSteps, StepOrder
from mae_nas.randomness import Purpose, derive_key

Batches = dict[str, list[Batch]]


@dataclass(kw_only=True)
class Ragged(ImageSource):
    """Images of many sizes, with labels."""

    crop_padding: int = 2
    count: int = 41

    def load(self, on_progress: Progress | None = None) -> ImageStore:  # noqa: ARG002
        generator = np.random.default_rng(7)
        sizes = [(5 + i % 3, 5 + i % 4) if i % 2 else (5, 5 + i % 5) for i in range(self.count)]
        images = [generator.integers(0, 65536, (*size, 2), np.uint16) for size in sizes]
        names = [f"{i}" for i in range(self.count)]
        return store_of_arrays(images, names, 5, np.arange(self.count) % 6)


def loaded(batch_size: int = 6, accumulate: int = 1, **options: object) -> SearchData:
    data = SearchData(Ragged(), 3, batch_size, accumulate, **options)  # type: ignore[arg-type]
    data.setup()
    return data


def equal(one: Batches, other: Batches) -> bool:
    pairs = [zip(one[name], other[name], strict=True) for name in ("weights", "arch")]
    return all(
        torch.equal(a.image, b.image)
        and torch.equal(a.index, b.index)
        and a.key == b.key
        and a.label is not None
        and b.label is not None
        and torch.equal(a.label, b.label)
        for a, b in itertools.chain(*pairs)
    )


def epoch_of(data: SearchData) -> Iterator[Batches]:
    return (data.on_after_batch_transfer(item, 0) for item in data.train_dataloader())


def test_batches_are_the_same_wherever_images_live_and_whoever_cuts_them() -> None:
    expected = [loaded().step_batches(step) for step in range(3)]
    settings = itertools.product((True, False), (0, 1, 2))
    for resident, workers in settings:
        data = loaded(resident=resident, workers=workers)
        assert data.steps_per_epoch == 3
        for one, other in zip(epoch_of(data), expected, strict=True):
            assert equal(one, other)


def test_workers_outlive_signals_to_the_whole_group() -> None:
    data = loaded(resident=False, workers=2)
    items = iter(data.train_dataloader())
    seen = [data.step_batches(next(items)) for _ in range(2)]  # both workers are up
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    time.sleep(0.2)
    assert len(multiprocessing.active_children()) == 2
    seen += [data.step_batches(item) for item in items]
    assert all(equal(one, data.step_batches(step)) for step, one in enumerate(seen))


ABANDONED = """
from mae_nas.data import SearchData, Synthetic
data = SearchData(Synthetic(images=48, side=8), 0, 4, workers=2, resident=False)
data.load()
items = iter(data.train_dataloader())
next(items)
raise KeyboardInterrupt
"""


@pytest.mark.slow
def test_a_process_ends_though_its_workers_ignore_signals() -> None:
    # While `items` lives, nobody shuts its workers down before multiprocessing waits for them.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", ABANDONED], env=environment, capture_output=True, timeout=300
    )
    assert done.stderr.decode().splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.slow
def test_dataset_survives_spawned_workers() -> None:
    data = loaded(resident=False)
    steps = HostSteps(Cutter(data.store, 2, None), StepOrder(data.split, data.seed, 6), BILEVEL)
    context = {"num_workers": 1, "multiprocessing_context": "spawn"}
    (item,) = DataLoader(steps, batch_size=None, sampler=[2], **context)
    assert equal(data.step_batches(item), data.step_batches(2))


def test_batch_is_what_its_definition_says() -> None:
    data = loaded()
    batch = data.step_batches(4)["weights"][0]
    assert batch.key == derive_key(3, Purpose.WEIGHTS, 4)
    assert batch.image.shape == (6, 2, 5, 5)
    assert batch.image.dtype == torch.float32
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.label is not None
    assert torch.equal(batch.label, batch.index % 6)
    assert data.step_batches(4)["arch"][0].key == derive_key(3, Purpose.ARCHITECTURE, 4)


def test_an_epoch_shows_each_weight_image_at_most_once_in_a_new_order() -> None:
    data = loaded()
    epochs = [
        torch.cat([data.step_batches(step)["weights"][0].index for step in range(start, start + 3)])
        for start in (0, 3)
    ]
    for seen in epochs:
        assert len(seen.unique()) == 18
        assert set(seen.tolist()) <= set(data.split.weights.tolist())
    assert not torch.equal(*epochs)


def test_architecture_stream_straddles_passes_and_never_skips() -> None:
    data = loaded()
    half = sorted(data.split.architecture.tolist())
    assert len(half) == 17  # no multiple of the batch
    stream = [i for s in range(17) for i in data.step_batches(s)["arch"][0].index.tolist()]
    for start in range(0, len(stream), 17):
        assert sorted(stream[start : start + 17]) == half
    assert stream[:17] != stream[17:34]


def test_order_does_not_depend_on_which_step_is_asked_first() -> None:
    split = loaded().split
    steps = [StepOrder(split, 3, 6) for _ in range(2)]
    forward = [steps[0].index(Purpose.ARCHITECTURE, step) for step in range(12)]
    backward = [steps[1].index(Purpose.ARCHITECTURE, step) for step in reversed(range(12))]
    assert all(torch.equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))


def test_micro_batches_are_pieces_of_the_batch() -> None:
    whole, pieces = loaded().step_batches(5), loaded(accumulate=3).step_batches(5)
    for name, (batch,) in whole.items():
        assert len(pieces[name]) == 3
        assert torch.equal(torch.cat([piece.image for piece in pieces[name]]), batch.image)
        assert torch.equal(torch.cat([piece.index for piece in pieces[name]]), batch.index)
        assert {piece.key for piece in pieces[name]} == {batch.key}


def test_held_out_images_are_centred_and_never_mirrored() -> None:
    data = loaded(batch_size=3)
    batches = list(data.held_out_batches())
    assert [len(batch.index) for batch in batches] == [2, 2]
    assert {batch.key for batch in batches} == {derive_key(3, Purpose.HELD_OUT)}
    store = data.store
    for batch in batches:
        for image, i in zip(batch.image, batch.index.tolist(), strict=True):
            top, left = (store.sizes[i] - 5) // 2
            raw = store[i][top : top + 5, left : left + 5].astype(float) + 32768
            expected = (raw - store.moments.mean) / store.moments.std
            np.testing.assert_allclose(image.permute(1, 2, 0), expected, atol=1e-5)
    assert torch.equal(next(data.preview(2)).image, batches[0].image[:2])
    on_host = loaded(batch_size=3, resident=False).held_out_batches()
    assert all(torch.equal(a.image, b.image) for a, b in zip(batches, on_host, strict=True))


def test_denormalised_pictures_are_the_originals() -> None:
    data = SearchData(Synthetic(images=30, side=7, flip=False), 0, 5)
    data.setup()
    batch = next(data.preview(3))
    pixels = data.store.pixels.reshape(30, 7, 7, 3)[batch.index.numpy()]
    picture = data.denormalise(batch.image).permute(0, 2, 3, 1)
    np.testing.assert_allclose(picture, pixels.astype(float) / 255, atol=1e-6)


def test_description_is_json_and_complete() -> None:
    facts = loaded().describe()
    assert facts == {
        "images": 41,
        "weights": 20,
        "architecture": 17,
        "held_out": 4,
        "side": 5,
        "channels": 2,
        "dtype": "int16",
        "resident": True,
        "skipped_files": [],
        "cache": None,
        "mean": facts["mean"],
        "std": facts["std"],
    }


def test_a_batch_larger_than_a_half_is_one_line() -> None:
    with pytest.raises(ValueError, match="use 17 or less"):
        loaded(batch_size=18)


class NoSync(TorchDispatchMode):
    """Fails where a device would have to wait for the host or the host for the device."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, name
        masks = [t for a in args if isinstance(a, list | tuple) for t in a if isinstance(t, Tensor)]
        assert not (name.startswith("index") and any(t.dtype == torch.bool for t in masks)), name
        assert name != "_to_copy" or "device" not in (kwargs or {}), name
        return func(*args, **(kwargs or {}))


def test_resident_steps_never_synchronise() -> None:
    data = loaded()
    data.step_batches(0)  # tables are moved once
    with NoSync():
        for step in range(1, 9):  # new epochs and passes included
            data.step_batches(step)


class Recorder(LightningModule):
    """One weight, one optimizer step per item; remembers what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int]]] = []
        self.dtypes: set[torch.dtype] = set()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch: Batches, _batch_idx: int) -> None:
        (weights,) = batch["weights"]
        self.seen.append((weights.key, weights.index.tolist()))
        self.dtypes.add(weights.image.dtype)
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.zero_grad()
        self.manual_backward((self.weight - weights.image.mean()) ** 2)
        optimizer.step()


def fit(
    steps: int, workers: int, folder: Path, start: Path | None = None, precision: str = "32-true"
) -> Recorder:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    module = Recorder()
    data = SearchData(Ragged(), 3, 6, workers=workers, resident=workers == 0)
    trainer.fit(module, data, ckpt_path=start)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return module


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")
@pytest.mark.filterwarnings("ignore:.*not resumable")
@pytest.mark.parametrize("stop", [2, 3, 4])  # in, at the end of, and after the first epoch
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(stop: int, tmp_path: Path) -> None:
    whole = fit(8, 0, tmp_path)
    assert len(whole.seen) == 8
    assert whole.seen[7][0] == derive_key(3, Purpose.WEIGHTS, 7)
    first = fit(stop, 0, tmp_path)
    rest = fit(8, 1, tmp_path, start=tmp_path / f"{stop}.ckpt")
    assert first.seen + rest.seen == whole.seen
    assert torch.equal(rest.weight, whole.weight)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")
def test_images_are_double_under_double_precision(tmp_path: Path) -> None:
    assert fit(1, 0, tmp_path, precision="64-true").dtypes == {torch.float64}
    assert fit(1, 0, tmp_path).dtypes == {torch.float32}
