import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mae_nas.cli.compose import compose
from mae_nas.cli.search import SearchRun, prepare
from mae_nas.runs.folder import RunFolder

TINY = [
    *("data=synthetic", "data.images=48", "data.side=8", "mask.patch_size=2", "space=s1"),
    *("supernet.width=4", "supernet.depth=3", "data.batch_size=4", "trainer.max_epochs=2"),
    *("trainer.accelerator=cpu", "seed=3"),
]


@cache
def composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    return compose([*TINY, *overrides]).config


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., SearchRun]:
    """A tiny search as it stands before its first step: six steps an epoch, two epochs."""

    def make(*overrides: str) -> SearchRun:
        folder = RunFolder(tmp_path / "run")
        folder.path.mkdir(exist_ok=True)
        return prepare(copy.deepcopy(composed(overrides)), folder, Console(quiet=True))

    return make
