"""Every YAML composes, its keys are its constructor's, and the public names stand."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mae_nas.cli import codes
from mae_nas.cli.assemble import Maker, assemble
from mae_nas.cli.build import FACTS, import_target
from mae_nas.cli.check import SEARCH, check
from mae_nas.cli.compose import OPTIONAL, compose
from mae_nas.cli.library import conf_dir
from mae_nas.cli.pretrain import LAYOUT as PRETRAIN
from mae_nas.cli.train import LAYOUT as TRAIN
from mae_nas.keys import leaves
from mae_nas.runs.sweeps import columns_of

GOLDEN = Path(__file__).parent / "golden" / "public_names.json"
FILES = sorted(path.relative_to(conf_dir()) for path in conf_dir().glob("*/*.yaml"))
NEEDED = {
    "data=folder": ["data.root=/images"],
    "relaxation=fixed": ["genotype=DARTS_V2"],
}  # what a user must give besides the option
OF_TRAIN = ("network", "recipe")  # groups of `mae-nas train` alone
LAUNCHER = OmegaConf.to_container(OmegaConf.load(conf_dir() / "hydra/launcher/mae_nas.yaml"))
EXPERIMENTS = [path.stem for path in FILES if path.parent.name == "experiment"]
OPTIONS = [f"{path.parent}={path.stem}" for path in FILES if path.stem != "custom"]
SHARED = [option for option in OPTIONS if option.startswith(("data=", "trainer=", "logger="))]
SEARCHED = [option for option in OPTIONS if not option.startswith(OF_TRAIN)]
TRAINED = [option for option in OPTIONS if option.startswith(OF_TRAIN)]
MASKED = ("network", "objective", "decoder", "mask")
LAYOUTS = {"search": SEARCH, "train": TRAIN, "pretrain": PRETRAIN}
GIVEN = {"search": [], "train": ["genotype=DARTS_V2"], "pretrain": ["genotype=DARTS_V2"]}


def nodes(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            if "_target_" in value:
                yield f"{path}{key}", value
            yield from nodes(value, f"{path}{key}.")


def test_every_group_is_of_a_command() -> None:
    assert len(SEARCHED) + len(TRAINED) == len(OPTIONS) > 40


@pytest.mark.parametrize(
    ("command", "option"),
    [("search", option) for option in SEARCHED]
    + [("train", option) for option in [*TRAINED, *SHARED]]
    + [("pretrain", option) for option in OPTIONS if option.startswith((*MASKED, "data"))],
)
def test_every_option_composes_and_fits_its_constructors(command: str, option: str) -> None:
    config = compose([option, *GIVEN[command], *NEEDED.get(option, [])], command=command).config
    check(config, layout=LAYOUTS[command])
    for path, node in nodes(config):
        if path.endswith("optimizer"):
            continue  # torch's own: names and types are checked, completeness is not ours
        parameters = inspect.signature(import_target(node["_target_"])).parameters
        given = set(node) - {"_target_"}
        assert given == set(parameters) - FACTS.get(path, frozenset()), path


def test_the_launchers_keys_are_its_arguments() -> None:
    assert isinstance(LAUNCHER, dict)
    arguments = inspect.signature(import_target(LAUNCHER["_target_"])).parameters
    assert set(LAUNCHER) - {"_target_"} == set(arguments)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_scale_says_what_it_leaves_out(experiment: str) -> None:
    whole = dict(leaves(compose([f"experiment={experiment}"]).config))
    assert whole["left_out"] == []
    for scale in ("smoke", "small", "full"):
        config = compose([f"experiment={experiment}", f"scale={scale}"]).config
        check(config)
        told = {entry.partition(" ")[0] for entry in config["left_out"]}
        changed = {key for key, value in leaves(config) if whole[key] != value}
        assert told == {key for key in changed if not key.startswith(("efficiency", "left_out"))}
        assert bool(told) == (scale != "full")


@pytest.mark.parametrize(
    "option", [o for o in OPTIONS if o.startswith(("space", "relaxation", "objective", "decoder"))]
)
def test_every_option_that_needs_the_datas_shape_is_built(option: str) -> None:
    config = compose([option, *NEEDED.get(option, [])]).config
    maker = Maker(config)
    assert assemble(maker, side=32, channels=3) is not None
    assert maker.problems == []


def test_every_plug_in_group_takes_a_class_of_the_users() -> None:
    custom = {str(path.parent) for path in FILES if path.stem == "custom"}
    assert custom == {str(path.parent) for path in FILES} - {*OPTIONAL, *OF_TRAIN}
    for group in custom:
        config = compose([f"{group}=custom", f"{group}._target_=mine.Mine", f"{group}.x=1"]).config
        assert config[group] == {"_target_": "mine.Mine", "x": 1}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_has_its_own_name(experiment: str) -> None:
    assert compose([f"experiment={experiment}"]).config["name"] == experiment


def test_public_names_are_frozen() -> None:
    """Scripts rely on these: add names to the golden file, and remove none without deprecation."""
    names: dict[str, object] = {
        "keys": sorted(key for key, _ in leaves(compose([]).config)),
        **{
            f"{command}_keys": sorted(
                key for key, _ in leaves(compose(GIVEN[command], command=command).config)
            )
            for command in ("train", "pretrain")
        },
        "options": sorted(f"{path.parent}={path.stem}" for path in FILES),
        "option_keys": {
            str(path.with_suffix("")): sorted(
                key for key, _ in leaves(OmegaConf.to_container(OmegaConf.load(conf_dir() / path)))
            )
            for path in FILES
            if path.parent.name not in OPTIONAL
        },
        "launcher": sorted(key for key, _ in leaves(LAUNCHER)),
        "sweep.csv": list(columns_of("search")),
        "exit_codes": {k.lower(): v for k, v in vars(codes).items() if k.isupper()},
    }
    assert names == json.loads(GOLDEN.read_text())
