"""The YAML files that configurations are made of, seen through Hydra's loader."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import mae_nas

CONFIG = "search"


def conf_dir() -> Path:
    """`conf/` of the installed wheel, or of the checkout."""
    package = Path(mae_nas.__file__).parent
    wheel = package / "conf"
    folder = wheel if wheel.is_dir() else package.parents[1] / "conf"
    if not (folder / f"{CONFIG}.yaml").is_file():
        raise ValueError(f"installation: {folder} holds no {CONFIG}.yaml")
    return folder.resolve()


class Library:
    """All configurations within reach: ours, and a folder of the user's (`--config-dir`)."""

    def __init__(self, loader: ConfigLoader, extra: Path | None) -> None:
        self.loader = loader
        self.folders = [conf_dir(), *([extra] if extra else [])]
        self.search_path = [f'hydra.searchpath=["file://{extra.resolve()}"]'] if extra else []
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def groups(self) -> dict[str, list[str]]:
        """Our groups (not Hydra's) and their options; Hydra would take long to list them."""
        options: dict[str, set[str]] = {}
        for group in (group for folder in self.folders for group in folder.iterdir()):
            if group.is_dir() and group.name != "hydra":
                files = {file.stem for file in group.glob("*.yaml") if file.is_file()}
                options.setdefault(group.name, set()).update(files)
        return {name: sorted(options[name]) for name in sorted(options)}

    def compose(self, overrides: list[str]) -> DictConfig:
        """The unresolved tree, Hydra's own node included, made once; ValueError in one line."""
        known = tuple(overrides)
        try:
            if known not in self._composed:
                texts = [*self.search_path, *overrides]
                self._composed[known] = compose(CONFIG, texts, return_hydra_config=True)
            return self._composed[known]
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            cause = error.__cause__
            text = f"{error} {cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
            raise ValueError(" ".join(text.split())) from error


@contextmanager
def open_library(extra: Path | None = None) -> Iterator[Library]:
    """Hydra's loader over `conf_dir()`, in front of it the user's folder `extra`."""
    if extra is not None and not extra.is_dir():
        raise ValueError(f"--config-dir: {extra} is not a folder")
    with initialize_config_dir(str(conf_dir()), job_name="mae-nas", version_base="1.3"):
        yield Library(GlobalHydra.instance().config_loader(), extra)


def unresolved(tree: DictConfig) -> dict[str, Any]:
    """The tree as plain dicts and lists, interpolations as they are written."""
    return cast("dict[str, Any]", OmegaConf.to_container(tree))
