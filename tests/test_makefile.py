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

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


def words_of(command: str, target: str, *variables: str) -> list[str]:
    """What the target would give to `mae-nas COMMAND`."""
    shown = subprocess.run(
        ["make", "-n", target, "ARGS=data.batch_size=8", *variables],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (line,) = [line for line in shown.splitlines() if f"mae-nas {command}" in line]
    return shlex.split(line)[2:]


@pytest.mark.parametrize(
    ("target", "scale"), [*((target, "full") for target in TARGETS), ("sweep-patch-size", "small")]
)
def test_a_target_shows_a_command_that_composes(target: str, scale: str) -> None:
    words = words_of("search", target, f"SCALE={scale}")
    assert ("-m" in words) == target.startswith("sweep")
    words = [word for word in words if word != "-m"]
    config = compose(list(chain(*(axis.texts for axis in split_values(words, ()))))).config
    assert config["data"]["batch_size"] == 8
    assert bool(config["left_out"]) == (scale != "full")


@pytest.mark.parametrize("target", ["train-cifar10", "train-imagenet"])
@pytest.mark.parametrize("scale", ["smoke", "small", "full"])
def test_a_training_shows_a_command_that_composes(target: str, scale: str) -> None:
    words = words_of("train", target, f"SCALE={scale}", "GENOTYPE=PDARTS")
    config = compose(words, command="train").config
    assert (config["genotype"], config["data"]["batch_size"]) == ("PDARTS", 8)
    assert bool(config["left_out"]) == (scale != "full")
    if scale == "full":
        assert config["trainer"]["max_epochs"] == (600 if target == "train-cifar10" else 250)
        assert config["network"]["width"] == (36 if target == "train-cifar10" else 48)


def test_trainings_of_two_searches_have_folders_of_their_own() -> None:
    folders = set()
    for genotype in ("runs/a/genotype.json", "runs/b/genotype.json", "runs/a/", "PDARTS"):
        words = words_of("train", "train-cifar10", f"GENOTYPE={genotype}")
        folders |= {word for word in words if word.startswith("hydra.run.dir=")}
    assert len(folders) == 4
    assert "hydra.run.dir=runs/train-cifar10-runs_a_genotype.json-smoke" in folders
