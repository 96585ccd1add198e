import dataclasses
import importlib
import inspect
import pickle
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import mae_nas.data
from mae_nas.data import ImageSource, SearchData

CONF = Path(__file__).parents[2] / "conf" / "data"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "custom")


def concrete_sources() -> set[type[ImageSource]]:
    found: set[type[ImageSource]] = set()
    for module in pkgutil.iter_modules(mae_nas.data.__path__, "mae_nas.data."):
        for _, value in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            has_own_name = not value.__subclasses__()
            if issubclass(value, ImageSource) and has_own_name and not inspect.isabstract(value):
                found.add(value)
    return found


def settings_of(name: str) -> DictConfig:
    settings = OmegaConf.load(CONF / f"{name}.yaml")
    assert isinstance(settings, DictConfig)
    return settings


def configured(name: str, root: Path) -> ImageSource:
    settings = settings_of(name)
    if "root" in settings.keys():  # noqa: SIM118 - a missing value is "not in" the mapping itself
        settings["root"] = str(root)
    values = OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    arguments = {str(key): value for key, value in values.items()}
    module, _, attribute = arguments.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), attribute)(**arguments)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Class folders that suit every source: 100 classes, or 10 in `cifar10`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    generator = np.random.default_rng(10)
    for below, classes in (("train", 100), ("cifar10/train", 10)):
        for label in range(classes):
            folder = tmp_path / "images" / below / f"{label:03d}"
            folder.mkdir(parents=True)
            for i in range(3):
                pixels = generator.integers(0, 256, (32, 35, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "images"


def test_every_source_has_a_configuration_of_its_own() -> None:
    targets = {settings_of(name)["_target_"] for name in NAMES}
    assert targets == {f"mae_nas.data.{source.__name__}" for source in concrete_sources()}
    assert all(source.__name__ in mae_nas.data.__all__ for source in concrete_sources())
    assert OmegaConf.missing_keys(settings_of("custom")) == {"_target_"}


@pytest.mark.parametrize("name", NAMES)
def test_configuration_is_complete_and_holds_the_defaults(name: str) -> None:
    settings = settings_of(name)
    source = type(configured(name, Path("nowhere")))
    fields = {field.name: field for field in dataclasses.fields(source)}
    assert set(settings) == {"_target_", *fields}
    for key, field in fields.items():
        natural = source.natural_side if key == "side" and settings[key] != "auto" else None
        if field.default is not dataclasses.MISSING:
            assert settings[key] == (natural or field.default), key


@pytest.mark.parametrize("name", NAMES)
def test_source_keeps_its_promises(name: str, images: Path) -> None:
    source = configured(name, images)
    data = SearchData(source, seed=5, batch_size=4)
    data.setup()
    store, split = data.store, data.split
    assert source.known_side() in (None, store.side)
    assert source.known_channels() in (None, store.channels)
    assert len(store.files) == len(set(store.files)) == len(store.sizes) == len(store.digests)
    assert store.sizes.min() == store.side
    assert len(store.pixels) == store.sizes.prod(axis=1).sum()
    parts = np.concatenate([split.weights, split.architecture, split.held_out])
    assert sorted(parts.tolist()) == list(range(len(store)))
    batches = data.step_batches(1)
    for (batch,) in batches.values():
        assert batch.image.shape == (4, store.channels, store.side, store.side)
        assert torch.isfinite(batch.image).all()
        assert batch.image.abs().mean() > 0.1
        assert (batch.label is None) == (store.labels is None)
    picture = data.denormalise(next(data.preview(2)).image)
    assert 0 <= picture.min() < picture.max() <= 1
    assert len(pickle.loads(pickle.dumps(store))) == len(store)
