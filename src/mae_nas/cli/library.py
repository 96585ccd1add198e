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

COMMANDS = ("search", "train", "pretrain")  # each with a YAML of its name


def conf_dir() -> Path:
    """`conf/` of the installed wheel, or of the checkout."""
    package = Path(mae_nas.__file__).parent
    wheel = package / "conf"
    folder = wheel if wheel.is_dir() else package.parents[1] / "conf"
    if not (folder / f"{COMMANDS[0]}.yaml").is_file():
        raise ValueError(f"installation: {folder} holds no {COMMANDS[0]}.yaml")
    return folder.resolve()


class Library:
    """The configurations of a command: ours, and those in a folder of the user's."""

    def __init__(self, loader: ConfigLoader, command: str, extra: Path | None) -> None:
        self.loader, self.command = loader, command
        self.folders = [conf_dir(), *([extra] if extra else [])]
        self.search_path = [f'hydra.searchpath=["file://{extra.resolve()}"]'] if extra else []
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def groups(self) -> dict[str, list[str]]:
        """The command's groups (not Hydra's) and their options; Hydra would be slow to list."""
        listed = OmegaConf.select(OmegaConf.load(conf_dir() / f"{self.command}.yaml"), "defaults")
        used = {str(key) for entry in listed if not isinstance(entry, str) for key in entry}
        options: dict[str, set[str]] = {}
        for group in (group for folder in self.folders for group in folder.iterdir()):
            if group.is_dir() and group.name in used:
                files = {file.stem for file in group.glob("*.yaml") if file.is_file()}
                options.setdefault(group.name, set()).update(files)
        return {name: sorted(options[name]) for name in sorted(options)}

    def compose(self, overrides: list[str]) -> DictConfig:
        """The unresolved tree, Hydra's own node included, made once; ValueError in one line."""
        known = tuple(overrides)
        try:
            if known not in self._composed:
                texts = [*self.search_path, *overrides]
                self._composed[known] = compose(self.command, texts, return_hydra_config=True)
            return self._composed[known]
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            cause = error.__cause__
            text = f"{error} {cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
            raise ValueError(" ".join(text.split())) from error


@contextmanager
def open_library(command: str, extra: Path | None = None) -> Iterator[Library]:
    """Hydra's loader over `conf_dir()`, in front of it the user's folder `extra`."""
    if extra is not None and not extra.is_dir():
        raise ValueError(f"--config-dir: {extra} is not a folder")
    with initialize_config_dir(str(conf_dir()), job_name="mae-nas", version_base="1.3"):
        yield Library(GlobalHydra.instance().config_loader(), command, extra)


def unresolved(tree: DictConfig) -> dict[str, Any]:
    """The tree as plain dicts and lists, interpolations as they are written."""
    return cast("dict[str, Any]", OmegaConf.to_container(tree))


def presets(group: str) -> dict[str, dict[str, Any]]:
    """The options of a group that needs no composing: arguments by the option's name."""
    files = sorted((conf_dir() / group).glob("*.yaml"))
    read = {file.stem: OmegaConf.to_container(OmegaConf.load(file)) for file in files}
    return {
        name: {str(key): value for key, value in node.items() if key != "_target_"}
        for name, node in read.items()
        if isinstance(node, dict)
    }
