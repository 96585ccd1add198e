"""`mae-nas draw`: a picture of a genotype."""

import textwrap
from pathlib import Path

from mae_nas.cli.spelling import suggest

_USAGE = """\
mae-nas draw genotype=FILE|RUN|NAME|TEXT [output=PATH]

Draw both cells of a genotype.
  genotype   genotype.json, a run folder, a published name (DARTS_V2), or DARTS's text
             'Genotype(normal=[...], ...)'
  output     a .png or .svg file; without a suffix, both (default: genotype)
Published names:
  {names}
"""


def usage() -> str:
    """What may be said, with all published names."""
    from mae_nas.genotype import PUBLISHED

    names = textwrap.wrap(", ".join(PUBLISHED), 78)
    return _USAGE.format(names="\n  ".join(names))


def draw(arguments: list[str]) -> list[str]:
    """Draw, and return a line for each file written. DARTS's text is not Hydra's grammar."""
    options = {"output": "genotype"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in ("genotype", "output"):
            near = suggest(key, ["genotype", "output"])
            raise ValueError(f"{argument}: draw takes genotype=… and output=…{near}")
        options[key] = value
    if not options.get("genotype"):
        raise ValueError("genotype: needed, e.g. mae-nas draw genotype=DARTS_V2")
    path = Path(options["output"] or "genotype")
    if path.suffix not in ("", ".png", ".svg"):
        raise ValueError(f"output: {path} is neither a .png nor a .svg file")

    from mae_nas.genotype import read_genotype
    from mae_nas.runs.drawing import draw_cells

    return [f"drawn: {file}" for file in draw_cells(read_genotype(options["genotype"]), path)]
