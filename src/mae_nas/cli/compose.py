"""Overrides in, plain configuration out, or every mistake at once, a line each.

Names are checked against the YAML alone, so nothing here imports torch; `check.py` then checks
values against the constructors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mae_nas.cli.library import CONFIG, conf_dir, open_library, unresolved
from mae_nas.cli.overrides import judge
from mae_nas.keys import find, is_inside, leaves

RUN_DIR = "hydra.run.dir"
_EXAMPLES = {"_target_": "my_module.MyClass", "root": "/path/to/images"}


@dataclass(frozen=True)
class Composed:
    """A configuration of plain dicts, lists and scalars, without Hydra's own node.

    Args:
        config: resolved.
        run_dir: where the run goes.
        run_dir_given: whether the user chose it (else it is dated).
        touched: keys and groups that the overrides set; "" stands for everything.
        targets: classes that the overrides name (`X._target_=...`).
    """

    config: dict[str, Any]
    run_dir: Path
    run_dir_given: bool
    touched: tuple[str, ...]
    targets: frozenset[str]


def compose(overrides: list[str], config_dir: Path | None = None) -> Composed:
    """Compose `conf/search.yaml` with `overrides`; one ValueError holds a line per mistake."""
    with open_library(config_dir) as library:
        judged = judge(overrides, library)
        try:
            tree = library.compose(judged.accepted)
        except ValueError as error:
            raise ValueError("\n".join([*judged.problems, str(error)])) from error
        raw = unresolved(tree)
        problems = [*judged.problems, *_value_problems(tree, raw)]
        if problems:
            raise ValueError("\n".join(dict.fromkeys(problems)))
        default = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{CONFIG}.yaml"))
        return Composed(
            config={str(key): _plain(tree[key]) for key in tree if key != "hydra"},
            run_dir=Path(tree.hydra.run.dir),
            run_dir_given=find(raw, RUN_DIR) != find(default, RUN_DIR),
            touched=tuple(judged.touched),
            targets=frozenset(judged.targets),
        )


def _plain(value: object) -> object:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _value_problems(tree: DictConfig, raw: dict[str, Any]) -> Iterator[str]:
    """Missing values (`???`) and interpolations that lead nowhere."""
    ours = [pair for pair in leaves(raw) if not is_inside(pair[0], ["hydra"])]
    for key, value in [*ours, (RUN_DIR, find(raw, RUN_DIR))]:
        if value == "???" or (key == RUN_DIR and value == ""):
            example = _EXAMPLES.get(key.rpartition(".")[2], "VALUE")
            yield f"{key}: needed, e.g. {key}={example}"
        elif "${" in str(value):
            try:
                _plain(OmegaConf.select(tree, key))
            except OmegaConfBaseException as error:
                text = str(error).splitlines()[0]
                yield f"{key}: {text.rpartition('while resolving interpolation: ')[2]}"
