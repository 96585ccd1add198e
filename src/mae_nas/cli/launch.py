"""Which process of a run this is, and what the first one leaves for those that it launches.

Lightning starts the other ranks of a node by the same command line. The first process alone judges
the configuration and the folder; the others are told what it decided.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mae_nas.cli.spelling import quoted
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.resume import Decision, follow

_PLACES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
DECIDED = "MAE_NAS_DECIDED"
"""The environment variable that holds what the first process decided."""
IN_SWEEP = "MAE_NAS_IN_SWEEP"
"""The environment variable that is set in a sweep's jobs."""


def is_first(config: Mapping[str, Any]) -> bool:
    """Whether no launcher has placed another process of this run before this one.

    A cluster's job may hold several runs of one device each: their ranks say nothing.
    """
    trainer = config["trainer"]
    is_alone = (trainer.get("devices", 1), trainer.get("num_nodes", 1)) == (1, 1)
    if is_alone and DECIDED not in os.environ:
        return True
    return all(os.environ.get(place, "0") == "0" for place in _PLACES)


def way_on(folder: Path) -> str:
    """What continues the run in `folder`, in words."""
    if IN_SWEEP in os.environ:
        return "the sweep's command again"
    text = str(folder)
    here = f"hydra.run.dir={text}"
    if not re.fullmatch(r"[\w./-]+", text):
        here = shlex.quote(f"hydra.run.dir={quoted(text)}")
    return f"the same command with resume=auto {here}"


@contextmanager
def left(config: Mapping[str, Any], folder: Path, checkpoint: Path | None) -> Iterator[None]:
    """Put what all ranks are about to compute where processes launched inside look.

    That is the environment, which they inherit.
    """
    saved = None if checkpoint is None else str(checkpoint.absolute())
    os.environ[DECIDED] = json.dumps([config, str(folder.absolute()), saved])
    try:
        yield
    finally:
        del os.environ[DECIDED]


def decided(config: dict[str, Any], run_dir: Path, run_dir_given: bool) -> Decision:
    """What the first process left here; on another node, what the same command line means there."""
    if DECIDED in os.environ:
        config, folder, saved = json.loads(os.environ[DECIDED])
        return Decision(config, RunFolder(Path(folder)), checkpoint=saved and Path(saved))
    if not run_dir_given or config["resume"] not in (None, "auto"):
        raise ValueError(
            "several nodes need hydra.run.dir=FOLDER on a file system that they share, and "
            "resume=auto to continue"
        )
    return follow(config, run_dir)
