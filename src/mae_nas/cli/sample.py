"""`mae-nas sample`: random cells of a space, the baseline that every comparison needs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mae_nas.cli.arguments import read_arguments, seed_number, whole_number

if TYPE_CHECKING:
    from mae_nas.spaces import SearchSpace

USAGE = """\
mae-nas sample [space=s0] [n=10] [seed=0] [output=FOLDER] [format=text|json]

Random cells: what α drawn from noise derives by DARTS's rule. The cell of seed i is that of
genotype=random:i, so that seed=5 n=2 gives those of 5 and 6.
  space    s0 | s1 | s2 | s3 | s4 | my_module.MySpace
  output   write SEED.json there as well, a file for each cell
  format   text: DARTS's text, a line for each cell | json: a list
"""


def sample(arguments: Sequence[str]) -> str:
    """The cells."""
    defaults = {"space": "s0", "n": "10", "seed": "0", "output": "", "format": "text"}
    options = read_arguments("sample", arguments, defaults).options
    number, first = whole_number("n", options["n"]), seed_number(options["seed"])
    space = _space(options["space"])

    from mae_nas.notation import darts_text
    from mae_nas.runs.files import write_json
    from mae_nas.spaces.derivation import random_genotype

    cells = {seed: random_genotype(space, seed) for seed in range(first, first + number)}
    if options["output"]:
        folder = Path(options["output"])
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"output: {folder} is a file, not a folder")
        taken = [f for seed in cells if (f := folder / f"{seed}.json").exists()]
        if taken:
            raise ValueError(f"output: {taken[0]} is there already; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        for seed, genotype in cells.items():
            write_json(folder / f"{seed}.json", genotype.to_dict())
    documents = [genotype.to_dict() for genotype in cells.values()]
    if options["format"] == "json":
        return json.dumps(documents, indent=1)
    return "\n".join(map(darts_text, documents))


def _space(name: str) -> "SearchSpace":
    from mae_nas import spaces  # torch, seconds
    from mae_nas.checks import raise_all
    from mae_nas.cli.build import build

    own = ("s0", "s1", "s2", "s3", "s4")
    if name not in own and "." not in name:
        raise ValueError(f"space={name}: use {', '.join(own)} or my_module.MySpace")
    target = f"mae_nas.spaces.{name.upper()}" if name in own else name
    space = build(spaces.SearchSpace, {"_target_": target}, {}, "space")
    raise_all(space.problems())
    return space
