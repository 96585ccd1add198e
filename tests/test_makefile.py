"""What the make targets of the reproductions would run composes."""

import shlex
import shutil
import subprocess
from itertools import chain
from pathlib import Path

import pytest

from mae_nas.cli.compose import compose
from mae_nas.cli.jobs import split_values

TARGETS = ("search-cifar10", "search-cifar100", "search-imagenet", "sweep-mask-ratio")


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(
    ("target", "scale"), [*((target, "full") for target in TARGETS), ("sweep-patch-size", "small")]
)
def test_a_target_shows_a_command_that_composes(target: str, scale: str) -> None:
    shown = subprocess.run(
        ["make", "-n", target, f"SCALE={scale}", "ARGS=data.batch_size=8"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (line,) = [line for line in shown.splitlines() if "mae-nas search" in line]
    words = [word for word in shlex.split(line)[2:] if word != "-m"]
    assert ("-m" in shlex.split(line)) == target.startswith("sweep")
    config = compose(list(chain(*(axis.texts for axis in split_values(words, ()))))).config
    assert config["data"]["batch_size"] == 8
    assert bool(config["left_out"]) == (scale != "full")
