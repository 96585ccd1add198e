"""`mae-nas draw`: a picture of a genotype."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from mae_nas.cli.arguments import read_arguments
from mae_nas.genotype import PUBLISHED, read_genotype

USAGE = """\
mae-nas draw genotype=FILE|RUN|NAME|TEXT [output=PATH]

Draw both cells of a genotype.
  genotype   genotype.json, a run folder, a published name (DARTS_V2), or DARTS's text
             'Genotype(normal=[...], ...)'
  output     a .png or .svg file; without a suffix, both (default: genotype)
Published names:
  """ + "\n  ".join(textwrap.wrap(", ".join(PUBLISHED), 78))


def draw(arguments: Sequence[str]) -> str:
    """Draw, and return a line for each file written. DARTS's text is not Hydra's grammar."""
    given = read_arguments("draw", arguments, {"genotype": "", "output": "genotype"}).options
    if not given["genotype"]:
        raise ValueError("genotype: needed, e.g. mae-nas draw genotype=DARTS_V2")
    path = Path(given["output"] or "genotype")
    if path.suffix not in ("", ".png", ".svg"):
        raise ValueError(f"output: {path} is neither a .png nor a .svg file")

    from mae_nas.runs.drawing import draw_cells  # matplotlib, seconds

    files = draw_cells(read_genotype(given["genotype"]), path)
    return "\n".join(f"drawn: {file}" for file in files)
