from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from mae_nas.backbone import CELL_KINDS
from mae_nas.batch import Batch
from mae_nas.data import SearchData, Synthetic
from mae_nas.decoders import HierarchicalDecoder
from mae_nas.masking import Masking
from mae_nas.objectives import Encode, Objective
from mae_nas.relaxations import DARTS, Mixture
from mae_nas.runs.trainer import TrainerSettings
from mae_nas.search import BilevelSettings, SearchModule
from mae_nas.spaces import S3

WIDTH = 5


class SmoothEncoder(nn.Module):
    """A smooth supernet of a few weights without BatchNorm: steps take a millisecond."""

    def __init__(self) -> None:
        super().__init__()
        candidates = S3().shape("normal")[1]
        self.maps = nn.ParameterDict(
            {kind: nn.Parameter(torch.randn(candidates, 3, WIDTH)) for kind in CELL_KINDS}
        )

    def forward(
        self,
        image: Tensor,
        mixtures: dict[str, Mixture],
        visible: object,  # noqa: ARG002
    ) -> Sequence[Tensor]:
        colour = image.mean((2, 3))
        return [
            torch.einsum("k,kbw->bw", mixtures[kind].ops.mean(0), (colour @ maps).tanh())
            for kind, maps in self.maps.items()
        ]


class SmoothObjective(Objective):
    """Predicts each image's brightest pixel from the features; remembers the keys it saw."""

    stages = 2

    def __init__(self, scale: float = 1.0, bad_keys: Sequence[int] = ()) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.randn(2 * WIDTH))  # a weight, whatever its name
        self.scale = scale
        self.bad_keys = bad_keys
        self.keys: list[int] = []

    def forward(self, encode: Encode, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.keys.append(batch.key)
        features = torch.cat(list(encode(batch.image, None)), dim=1)
        error = features @ self.alpha - batch.image.amax((1, 2, 3))
        loss = self.scale * error.square().mean()
        if batch.key in self.bad_keys:
            loss = loss * torch.tensor(float("nan"))
        return loss, {"error": error.detach().mean()}


class AtStart(pl.Callback):
    """Calls `action(module, batch)` before every step."""

    def __init__(self, action: Callable[[SearchModule, dict[str, list[Batch]]], None]) -> None:
        self.action = action

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,
        batch: dict[str, list[Batch]],
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        assert isinstance(pl_module, SearchModule)
        self.action(pl_module, batch)


class AtEnd(pl.Callback):
    """Calls `action(module)` after every step."""

    def __init__(self, action: Callable[[SearchModule], None]) -> None:
        self.action = action

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,
        *_: object,
    ) -> None:
        assert isinstance(pl_module, SearchModule)
        self.action(pl_module)


Fit = Callable[..., SearchModule]


@pytest.fixture
def settings() -> Callable[..., BilevelSettings]:
    """The method's settings; `weights` and `arch` replace arguments of the optimizers."""

    def make(
        weights: dict[str, object] | None = None,
        arch: dict[str, object] | None = None,
        **others: object,
    ) -> BilevelSettings:
        sgd = {"lr": 0.025, "momentum": 0.9, "weight_decay": 3e-4}
        adam = {"lr": 3e-4, "betas": (0.5, 0.999), "weight_decay": 1e-3}
        return BilevelSettings(
            partial(torch.optim.SGD, **{**sgd, **(weights or {})}),  # type: ignore[arg-type]
            partial(torch.optim.Adam, **{**adam, **(arch or {})}),  # type: ignore[arg-type]
            **others,  # type: ignore[arg-type]
        )

    return make


@pytest.fixture
def smooth(settings: Callable[..., BilevelSettings]) -> Callable[..., SearchModule]:
    """A search on the smooth encoder."""

    def make(
        epochs: int = 50,
        steps_per_epoch: int = 1,
        objective: Objective | None = None,
        **arguments: object,
    ) -> SearchModule:
        torch.manual_seed(1)
        relaxation = DARTS(S3())
        objective = objective or SmoothObjective()
        return SearchModule(
            relaxation,
            SmoothEncoder(),  # type: ignore[arg-type]
            objective,
            settings(**arguments),
            epochs,
            steps_per_epoch,
        )

    return make


@pytest.fixture
def small(
    make_search: Callable[..., tuple], settings: Callable[..., BilevelSettings]
) -> Callable[..., SearchModule]:
    """A search on a real supernet of three cells."""

    def make(
        taps: tuple[int, ...] = (1, 2, 3),
        masking: Masking | None = None,
        epochs: int = 10,
        steps_per_epoch: int = 5,
        **arguments: object,
    ) -> SearchModule:
        space = S3()

        def decoder(**facts: object) -> HierarchicalDecoder:
            return HierarchicalDecoder(taps=taps, **facts)  # type: ignore[arg-type]

        relaxation, supernet, objective = make_search(space, masking=masking, decoder=decoder)
        return SearchModule(
            relaxation, supernet, objective, settings(**arguments), epochs, steps_per_epoch
        )

    return make


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """Train a search on synthetic images with the real trainer and data."""

    def run(
        module: SearchModule,
        steps: int,
        callbacks: Sequence[pl.Callback] = (),
        batch_size: int = 4,
        accumulate: int = 1,
        precision: str = "32-true",
        images: int = 40,
    ) -> SearchModule:
        source = Synthetic(images=images, side=16)
        data = SearchData(source, 3, batch_size, accumulate, workers=0, resident=True)
        data.load()
        trainer = TrainerSettings(
            accumulate=accumulate,
            precision=precision,  # type: ignore[arg-type]
            accelerator="cpu",
        ).make(steps, callbacks, tmp_path)
        trainer.fit(module, datamodule=data)
        return module

    return run


@pytest.fixture
def smooth_objective() -> type[SmoothObjective]:
    """The smooth search's objective, to be made with other arguments."""
    return SmoothObjective


@pytest.fixture
def at_start() -> type[AtStart]:
    """A callback that looks before each step."""
    return AtStart


@pytest.fixture
def at_end() -> type[AtEnd]:
    """A callback that looks after each step."""
    return AtEnd
