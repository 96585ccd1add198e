"""Which images a stored network is to be shown: named on the command line, or those of its run."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mae_nas.cli.assemble import Maker
from mae_nas.cli.build import build
from mae_nas.cli.check import Layout, Root, check
from mae_nas.cli.compose import compose
from mae_nas.cli.run import Config
from mae_nas.data import ImageSource
from mae_nas.data.stream import Preprocessing
from mae_nas.runs.folder import RunFolder

PLACES = ("root", "test", "cache")
"""Where images lie, which may be elsewhere than in training."""


def named_source(overrides: Sequence[str], checkpoint: Path, seen: Preprocessing) -> ImageSource:
    """The data set of `data=NAME data.KEY=VALUE ...`, or else the one of the checkpoint's run.

    Args:
        overrides: as given.
        checkpoint: in its run folder, if the images are not named.
        seen: what the network wants, where `data.side` and `data.channels` do not say.

    Raises:
        ValueError: a line for each mistake.
    """
    named = dict(word.split("=", 1) for word in overrides)
    if "data" in named:
        composed = compose(list(overrides), None, "pretrain")
        config, may_import = composed.config, None  # whatever the user names
        for key in ("side", "channels"):
            if key in config["data"] and f"data.{key}" not in named:
                config["data"][key] = getattr(seen, key)
    else:
        config, may_import = _stored(named, checkpoint), frozenset[str]()
    keys = ("name", "seed", "resume", "left_out", "data")
    check({key: config[key] for key in keys}, may_import, _LAYOUT)
    return build(ImageSource, config["data"], {}, "data")


def _stored(named: Mapping[str, str], checkpoint: Path) -> dict[str, Any]:
    """The configuration of the checkpoint's run, its images where `named` says."""
    folder = RunFolder(checkpoint.parent.parent)
    if not folder.config.exists():
        raise ValueError("data: needed, e.g. data=folder data.root=/path/to/images")
    config: dict[str, Any] = dict(folder.read_config())
    if not isinstance(config.get("data"), dict):
        raise ValueError(f"{folder.config}: names no images; give data=… data.root=…")
    data = dict(config["data"])
    for key, value in named.items():
        name = key.removeprefix("data.")
        if name not in PLACES or name not in data:
            raise ValueError(f"{key}: needs data=… as well; else images are those of the run")
        data[name] = value
    return config | {"data": data}


def _judge(config: Config, broken: Collection[str]) -> list[str]:
    maker = Maker(config, set(broken))
    maker.make(ImageSource, "data")
    return maker.problems


_LAYOUT = Layout({"data": ImageSource}, {}, Root, _judge)
