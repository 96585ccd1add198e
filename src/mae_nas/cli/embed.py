"""`mae-nas embed`: the features of images, by a network that was trained on images."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mae_nas.cli.arguments import check_folder, check_images, read_arguments, whole_number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mae_nas.data import ImageStore

USAGE = """\
mae-nas embed checkpoint=RUN|FILE output=FILE [data=folder data.root=... ...] [KEY=VALUE ...]

Pooled features of every image, by the network of mae-nas pretrain or train, frozen. Can be stopped
and started again; memory holds one batch.
  checkpoint   a run folder, or a checkpoint alone
  data=, data.root=, ...   the images; by default all of the run's, but for test images. They are
               brought to the network's side and channels
  output       .npz (arrays `features` (N, D) float32 and `files` (N,)) or .csv (a line an image)
  neighbours=FILE   a picture (.png) of some images, each beside those of the nearest features
  batch=64     images at a time
  threads=     of the CPU; by default torch's choice
  device=auto|cpu|cuda|mps
"""

_DEFAULTS = {
    "checkpoint": "",
    "output": "",
    "neighbours": "",
    "batch": "64",
    "threads": "",
    "device": "auto",
}


def embed(arguments: Sequence[str]) -> str:
    """Write the file, and say what is in it."""
    given = read_arguments("embed", arguments, _DEFAULTS, overrides=True)
    options, size = given.options, whole_number("batch", given.options["batch"])
    check_images("embed", given.overrides, options)
    output = Path(options["output"])
    if output.suffix not in (".npz", ".csv") or output.is_dir():
        raise ValueError(
            f"output={options['output']}: name a .npz or .csv file, e.g. output=features.npz"
        )
    picture = Path(options["neighbours"]) if options["neighbours"] else None
    if picture is not None and (picture.suffix != ".png" or picture.is_dir()):
        raise ValueError(f"neighbours={picture}: name a .png file, e.g. neighbours=alike.png")
    check_folder("output", output.parent)
    if picture is not None:
        check_folder("neighbours", picture.parent)
    if output.exists():
        raise ValueError(f"output: {output} is there already; choose another, or remove it")

    import numpy as np
    import torch  # seconds
    from rich.console import Console

    from mae_nas.cli.assemble import progress
    from mae_nas.cli.encoded import computing_device, load_encoder, shown
    from mae_nas.data.stream import stream
    from mae_nas.runs.embedding import PartialTable, features_of, fingerprint, identity_of

    device = computing_device(options)
    stored, file = load_encoder(options["checkpoint"], device)
    console = Console(stderr=True)
    store = shown(stored, given.overrides, file, console)
    output.parent.mkdir(parents=True, exist_ok=True)
    table = PartialTable(
        output,
        len(store),
        stored.network.feature_info[-1].channels,
        identity_of(
            store,
            *(fingerprint(file), stored.preprocessing, size, device.type),
            *(torch.get_num_threads(), torch.__version__),
        ),
    )
    rows, done = table.open()

    batches = stream(store, np.arange(len(store)), size, device, first=done // size)
    try:
        with progress(console, "images") as on_rows:
            table.fill(rows, done // size * size, features_of(stored.network, batches), on_rows)
        said = [] if picture is None else _drawn(rows, store, picture)
        table.finish(rows, store.files)
    except KeyboardInterrupt:
        sys.stderr.write(f"mae-nas: stopped; the same command goes on from {table.folder}\n")
        raise
    finally:
        table.release()
    begun = f" ({done:,} of them were there already)" if done else ""
    first = (
        f"features   {output}: {len(store):,} images{begun}, {table.columns} features each, of "
        f"step {stored.step:,}"
    )
    return "\n".join([first, *said])


def _drawn(features: "NDArray[np.float32]", store: "ImageStore", picture: Path) -> list[str]:
    """The picture of neighbours, if there are any; what to say of it."""
    from mae_nas.runs.neighbour_plots import plot_neighbours

    if len(store) < 2:
        return ["no picture: there is one image"]
    picture.parent.mkdir(parents=True, exist_ok=True)
    pictures = plot_neighbours(features, store, picture)
    return [f"neighbours {path}" for path in pictures]
