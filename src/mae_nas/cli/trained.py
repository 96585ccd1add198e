"""A trained network, read back from its run folder: data from a stranger until it is checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mae_nas.cli.check import check
from mae_nas.cli.drive import data_hash
from mae_nas.cli.train import LAYOUT, TrainRun, prepare
from mae_nas.network.latency import device_type
from mae_nas.runs.checkpoint import check_fits, checkpoint_in, read_checkpoint
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.listing import command_of

_MAY_DIFFER = ("data.root", "data.test", "data.cache", "trainer.accelerator")


@dataclass(frozen=True)
class Trained:
    """A network and its data, on their device.

    Args:
        run: prepared, its weights those of the checkpoint.
        step: that they were written at.
    """

    run: TrainRun
    step: int


def load_trained(text: str, given: Mapping[str, str], console: Console) -> Trained:
    """The network of a run folder, or of a checkpoint in one.

    Args:
        text: the path.
        given: keys of the run's configuration that are to be others here: where images lie, what
            computes.
        console: for progress.

    Raises:
        ValueError: one line, or one for each mistake.
    """
    checkpoint, path = checkpoint_in(text), Path(text)
    if path.is_file() and path.parent.name != "checkpoints":
        raise ValueError(f"checkpoint: {path} is not a checkpoint in a run folder (checkpoints/)")
    folder = RunFolder(path if path.is_dir() else path.parent.parent)
    config: dict[str, Any] = dict(folder.read_config())
    if (command := command_of(config)) != "train":
        held = "a pretraining, not classes" if command == "pretrain" else "a search, not a network"
        also = f" init_from={folder.path}" if command == "pretrain" else ""
        raise ValueError(
            f"{folder.path}: holds {held}; mae-nas train genotype={folder.path}{also} trains one "
            "with labels"
        )
    for key, value in given.items():
        section, _, name = key.partition(".")
        config[section] = {**config[section], name: value}
    check(config, (), LAYOUT)
    saved = read_checkpoint(checkpoint)
    run = prepare(config, folder, console)
    identity = {**run.identity, "data_hash": data_hash(run.data)}
    check_fits(saved, run.module.state_dict(), identity, checkpoint)
    run.module.load_state_dict(saved["state_dict"])
    device = torch.device(device_type(run.settings.accelerator))
    run.module.to(device)
    run.data.use(device, next(run.module.parameters()).dtype)
    return Trained(run, int(saved["global_step"]))


def differing(options: Mapping[str, str]) -> dict[str, str]:
    """Those of the command line's options that change where the network is tried."""
    return {key: options[key] for key in _MAY_DIFFER if options.get(key)}
