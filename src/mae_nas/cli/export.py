"""`mae-nas export`: a trained network as a file that others can use, proved in a fresh process."""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from mae_nas.cli.arguments import read_arguments, whole_number
from mae_nas.cli.spelling import suggest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from mae_nas.batch import Batch
    from mae_nas.data.stream import Preprocessing
    from mae_nas.network import DerivedNetwork
    from mae_nas.network.export import Description

USAGE = """\
mae-nas export checkpoint=RUN|FILE format=safetensors|onnx|torch_export|timm [output=FILE]

A trained network as a file, with preprocessing and class names in it; a pretrained one gives its
pooled features. The file is read back by a fresh process and compared with the network on images;
if they differ, no file is left.
  format   safetensors    weights by name
           timm           the same, for timm.create_model("mae_nas", genotype=FILE)
           onnx           norms folded into convolutions, any batch; pip install mae-nas[export]
           torch_export   a program of torch.export, likewise
  output   default: network.safetensors, network-timm.safetensors, network.onnx or network.pt2 in
           the run folder
  images=256   to compare on: test images, or those of the pretraining
  data.root=, data.test=, data.cache=   where images lie, if elsewhere than in training
"""

TOLERANCE = 1e-4
"""Largest difference of a score, of the largest score or of 1: rounding, by other kernels.

Of pooled features, a tenth.
"""
CLOSE = 1e-4
"""Two best scores that lie so close may change places by rounding."""


@dataclass(frozen=True)
class _Subject:
    """What is exported: a network, of a training or pretraining, and images to compare it on."""

    network: "DerivedNetwork"
    description: "Description"
    images: "NDArray[np.float32]"
    folder: Path
    what: str = "test images"


def export(arguments: Sequence[str]) -> str:
    """Write the file, and say what was found of it."""
    keys = ("checkpoint", "output", "data.root", "data.test", "data.cache")
    named = [word.partition("=")[2] for word in arguments if word.startswith("format=")]
    others = [word for word in arguments if not word.startswith("format=")]
    options = read_arguments("export", others, dict.fromkeys(keys, "") | {"images": "256"}).options
    most, kind = whole_number("images", options["images"]), named[-1] if named else ""

    from mae_nas.network.export import FORMATS  # torch, seconds

    if kind not in FORMATS:
        near = suggest(kind, FORMATS) if kind else ""
        raise ValueError(f"format={kind}: use {', '.join(FORMATS)}{near}")
    if kind == "onnx":
        _need("onnx", "onnxruntime", "onnxscript")
    suffix, write = FORMATS[kind]
    given = Path(options["output"]) if options["output"] else None
    if given is not None and (given.suffix != suffix or given.is_dir()):
        raise ValueError(f"output: {given} is no {suffix} file, which format={kind} makes")

    subject = _subject(options, most)
    if any(getattr(layer, "is_random", False) for layer in subject.network.modules()):
        raise ValueError("export: the genotype has noise, and no file gives the same scores twice")
    name = "network-timm" if kind == "timm" else "network"
    output = given or subject.folder / f"{name}{suffix}"
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as room:
        made = Path(room) / output.name
        write(subject.network, subject.description, made)
        lines = _compared(kind, made, subject)
        mask = os.umask(0)
        os.umask(mask)
        made.chmod(0o666 & ~mask)  # as any file; safetensors' own are the user's alone
        made.replace(output)
    return "\n".join([f"exported   {output}, {output.stat().st_size / 1e6:.2f} MB", *lines])


def _need(*packages: str) -> None:
    from importlib.util import find_spec

    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ValueError(f"format=onnx: needs {', '.join(missing)}; pip install 'mae-nas[export]'")


def _subject(options: Mapping[str, str], most: int) -> "_Subject":
    from rich.console import Console

    from mae_nas.cli.trained import differing, load_trained
    from mae_nas.data.stream import Preprocessing
    from mae_nas.runs.checkpoint import checkpoint_in
    from mae_nas.runs.folder import RunFolder
    from mae_nas.runs.listing import command_of

    console, file = Console(stderr=True), checkpoint_in(options["checkpoint"])
    folder = RunFolder(file.parent.parent)
    if command_of(folder.read_config()) == "pretrain":
        return _pretrained(options, file, most, console)
    here = differing(options) | {"trainer.accelerator": "cpu"}
    run = load_trained(options["checkpoint"], here, console).run
    network = run.module.judged.float().eval()
    seen = Preprocessing.of(run.data.store)
    description = _description(network, seen, run.data.classes)
    return _Subject(network, description, _first(run.data.test_batches(), most), folder.path)


def _pretrained(
    options: Mapping[str, str], file: Path, most: int, console: "Console"
) -> "_Subject":
    import numpy as np
    import torch

    from mae_nas.cli.encoded import load_encoder, shown
    from mae_nas.data.stream import stream
    from mae_nas.network import DerivedNetwork

    cpu = torch.device("cpu")
    stored, _ = load_encoder(options["checkpoint"], cpu)
    if not isinstance(stored.network, DerivedNetwork):
        raise ValueError("export: the checkpoint holds a model of timm, which timm itself exports")
    named = [f"{key}={value}" for key, value in options.items() if "data." in key and value]
    store = shown(stored, named, file, console)
    batches = stream(store, np.arange(min(most, len(store))), 64, cpu)
    description = _description(stored.network, stored.preprocessing, ())
    folder = file.parent.parent
    return _Subject(stored.network, description, _first(batches, most), folder, "images")


def _description(
    network: "DerivedNetwork", seen: "Preprocessing", classes: tuple[str, ...]
) -> "Description":
    from mae_nas.network.complexity import Place
    from mae_nas.network.export import Description

    scale = 255.0 if seen.dtype == "uint8" else 1.0
    return Description(
        place=Place(network.size, seen.channels, seen.side, len(classes)),
        genotype=network.genotype,
        classes=classes,
        mean=tuple(value / scale for value in seen.mean),
        std=tuple(value / scale for value in seen.std),
        scale=scale,
    )


def _first(batches: "Iterable[Batch]", most: int) -> "NDArray[np.float32]":
    """The first images, normalised."""
    import numpy as np

    found: list[Any] = []
    for batch in batches:
        found.append(batch.image.float().cpu().numpy())
        if sum(map(len, found)) >= most:
            break
    return np.ascontiguousarray(np.concatenate(found)[:most])


def _compared(kind: str, file: Path, subject: "_Subject") -> list[str]:
    """What a fresh process makes of the file; ValueError if it is not the network."""
    import numpy as np
    import torch

    from mae_nas.network.export import in_fresh_process, reload

    network, images, what = subject.network, subject.images, subject.what
    with torch.no_grad():
        parts = torch.from_numpy(images).split(64)
        wanted = torch.cat([network(part) for part in parts]).numpy()
    given, answer = file.with_name("images.npy"), file.with_name("scores.npy")
    np.save(given, images)
    in_fresh_process(kind, file, given, answer)
    found = np.load(answer)
    apart = float(np.abs(found - wanted).max())
    tolerance = TOLERANCE if subject.description.classes else TOLERANCE / 10
    allowed = tolerance * max(1.0, float(np.abs(wanted).max()))
    if not apart <= allowed:
        raise ValueError(
            f"export: {kind}: outputs of {len(images)} {what} differ by up to {apart:.2g} "
            f"from the network's, {allowed:.2g} is allowed; nothing was written"
        )
    said = f"compared   by a fresh process on {len(images):,} {what}: largest difference"
    classes = _same_classes(kind, found, wanted, what) if subject.description.classes else ""
    lines = [f"{said} {apart:.2g}{classes}"]
    if kind == "onnx":

        def ours(image: "NDArray[np.float32]") -> object:
            with torch.no_grad():
                return network(torch.from_numpy(image))

        ort, torchs = (_milliseconds(run, images[:1]) for run in (reload(kind, file), ours))
        lines.append(
            f"latency    {ort:.2f} ms an image by ONNX Runtime, {torchs:.2f} ms by torch "
            f"({torch.get_num_threads()} threads, medians)"
        )
    if kind == "timm":
        lines.append('in timm    import mae_nas.timm; timm.create_model("mae_nas", genotype=FILE)')
    return lines


def _same_classes(
    kind: str, found: "NDArray[np.float32]", wanted: "NDArray[np.float32]", what: str
) -> str:
    """In words, whether all images have the class that they had; ValueError if not."""
    import numpy as np

    second, first = np.sort(wanted, 1)[:, -2:].T
    others = found.argmax(1) != wanted.argmax(1)
    if told := int((others & (first - second >= CLOSE)).sum()):
        raise ValueError(
            f"export: {kind}: {told} of {len(wanted)} {what} have another class, by more than "
            "rounding; nothing was written"
        )
    few = f" but {others.sum()} whose two best are within {CLOSE:g}" if others.any() else ""
    return f", the same class for all{few}"


def _milliseconds(
    run: "Callable[[NDArray[np.float32]], object]", image: "NDArray[np.float32]"
) -> float:
    taken = []
    for _ in range(23):
        began = time.perf_counter()
        run(image)
        taken.append(1e3 * (time.perf_counter() - began))
    return median(taken[3:])
