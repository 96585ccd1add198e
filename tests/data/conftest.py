from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Save = Callable[[str, NDArray[np.generic]], Path]


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save an array as an image below `tmp_path/images`."""

    def _save(name: str, array: NDArray[np.generic]) -> Path:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
        return path

    return _save


@pytest.fixture
def numbered(save: Save, tmp_path: Path) -> Callable[..., Path]:
    """A folder of `count` different RGB images."""

    def _numbered(count: int, height: int = 5, width: int = 7) -> Path:
        generator = np.random.default_rng(count)
        for i in range(count):
            save(f"{i}.png", generator.integers(0, 256, (height, width, 3), np.uint8))
        return tmp_path / "images"

    return _numbered
