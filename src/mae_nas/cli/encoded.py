"""A stored network with images to show it: what `embed` and `probe` begin with."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from mae_nas.cli.arguments import whole_number
from mae_nas.cli.assemble import progress
from mae_nas.cli.images import named_source
from mae_nas.cli.place import DEVICES, check_choices, named_device
from mae_nas.data import ImageSource, ImageStore
from mae_nas.network.stored import Stored, restore
from mae_nas.runs.checkpoint import checkpoint_in, read_checkpoint


def computing_device(options: Mapping[str, str]) -> torch.device:
    """That of `device=`, with `threads=` threads; ValueError in one line if it is not here."""
    check_choices(options, {"device": DEVICES})
    if options["threads"]:
        torch.set_num_threads(whole_number("threads", options["threads"]))
    return named_device(options["device"])


def load_encoder(text: str, device: torch.device) -> tuple[Stored, Path]:
    """The network of a run folder or checkpoint, on the device, and the checkpoint's file."""
    file = checkpoint_in(text)
    stored = restore(read_checkpoint(file), file)
    stored.network.to(device)
    return stored, file


def read(source: ImageSource, console: Console) -> ImageStore:
    """All images of a data set that are not for the test alone."""
    with progress(console, "reading images") as on_progress:
        return source.load(on_progress)


def shown(stored: Stored, overrides: Sequence[str], file: Path, console: Console) -> ImageStore:
    """Those of the data set that `named_source` finds, as the network was shown its own."""
    source = named_source(overrides, file, stored.preprocessing)
    return stored.preprocessing.apply(read(source, console))
