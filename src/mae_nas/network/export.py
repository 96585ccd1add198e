"""The trained network as a file that others can use, and what a fresh process makes of it.

All files hold the network that is judged, without its auxiliary head, and a description of it:
genotype, sizes, preprocessing and class names. The input is normalised; `mean` and `std` are in
units of the image's values divided by `scale`.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mae_nas.genotype import Genotype
from mae_nas.network.complexity import Place
from mae_nas.network.derived import WIDEST, DerivedNetwork, NetworkSize
from mae_nas.network.folding import folded

KEY = "mae_nas"
"""Of the description in a file's metadata."""


@dataclass(frozen=True)
class Description:
    """What a file says of its network.

    Args:
        place: channels, side and classes.
        genotype: of the cells.
        classes: names, in the order of the scores.
        mean, std: of each channel, of values divided by `scale`.
        scale: 255 of 8-bit images.
    """

    place: Place
    genotype: Genotype
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float

    def to_json(self) -> str:
        """As it stands in a file; `interpolation` is how images are brought to the side."""
        facts = asdict(self) | {"genotype": self.genotype.to_dict(), "interpolation": "bilinear"}
        return json.dumps({"format": "mae_nas.network/1", **facts})

    @staticmethod
    def from_json(text: str) -> "Description":
        """The inverse; ValueError in one line of any other text."""
        try:
            facts = json.loads(text)
            if facts["format"] != "mae_nas.network/1":
                raise ValueError("another format")
            place = facts["place"]
            size = NetworkSize(**place.pop("size"))
            numbers = [int(place[key]) for key in ("channels", "side", "classes")]
            if not all(0 < n <= WIDEST for n in numbers[:2]) or not 0 <= numbers[2] <= WIDEST:
                raise ValueError("a size out of range")
            found = Description(
                Place(size, *numbers),
                Genotype.from_dict(facts["genotype"]),
                tuple(map(str, facts["classes"])),
                tuple(map(float, facts["mean"])),
                tuple(map(float, facts["std"])),
                float(facts["scale"]),
            )
            counts = len(found.mean), len(found.std), len(found.classes)
            if counts != (numbers[0], numbers[0], numbers[2]):
                raise ValueError("as many means as channels, and names as classes, were wanted")
            return found
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not the description of a network ({error})") from None


def plain(network: DerivedNetwork) -> dict[str, Tensor]:
    """Weights and statistics without the auxiliary head, contiguous."""
    return {
        name: value.contiguous()
        for name, value in network.state_dict().items()
        if not name.startswith("auxiliary_head.")
    }


def to_safetensors(network: DerivedNetwork, description: Description, file: Path) -> None:
    """Weights by name, the description in the metadata."""
    from safetensors.torch import save_file

    save_file(plain(network), file, {KEY: description.to_json()})


def to_timm(network: DerivedNetwork, description: Description, file: Path) -> None:
    """Likewise, with the names of the model that `mae_nas.timm` registers."""
    from safetensors.torch import save_file

    named = {f"network.{name}": value for name, value in plain(network).items()}
    save_file(named, file, {KEY: description.to_json()})


def to_onnx(network: DerivedNetwork, description: Description, file: Path) -> None:
    """Norms folded, any batch; input `image`, output `scores`, without classes `features`."""
    import onnx

    image, batch = _example(description), torch.export.Dim("batch", min=1, max=1 << 20)
    program = torch.onnx.export(
        folded(network),
        (image,),
        input_names=["image"],
        output_names=["scores" if description.classes else "features"],
        dynamic_shapes={"image": {0: batch}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    model.metadata_props.append(onnx.StringStringEntryProto(key=KEY, value=description.to_json()))
    onnx.checker.check_model(model)
    file.write_bytes(model.SerializeToString())


def to_torch_export(network: DerivedNetwork, description: Description, file: Path) -> None:
    """Norms folded, any batch: a program of torch.export."""
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    program = torch.export.export(
        folded(network), (_example(description),), dynamic_shapes={"image": {0: batch}}
    )
    torch.export.save(program, file, extra_files={KEY: description.to_json()})


def _example(description: Description) -> Tensor:
    place = description.place
    return torch.zeros(2, place.channels, place.side, place.side)


Write = Callable[[DerivedNetwork, Description, Path], None]
FORMATS: Mapping[str, tuple[str, Write]] = {
    "safetensors": (".safetensors", to_safetensors),
    "timm": (".safetensors", to_timm),
    "onnx": (".onnx", to_onnx),
    "torch_export": (".pt2", to_torch_export),
}
"""By name: the suffix of the file, and what writes it."""


def described(file: Path) -> Description:
    """Of a safetensors file of ours; ValueError in one line of another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as content:
            text = (content.metadata() or {}).get(KEY, "")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: not a safetensors file ({error})") from None
    try:
        return Description.from_json(text)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def load_safetensors(file: Path) -> tuple[DerivedNetwork, Description]:
    """The network of a file of `format=safetensors`, in evaluation mode."""
    from safetensors.torch import load_file

    description = described(file)
    place = description.place
    network = place.network(description.genotype)
    network.auxiliary_head = None
    weights, state = load_file(file), network.state_dict()
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in state.items()}:
        raise ValueError(f"{file}: its tensors are not those that it describes, or are timm's")
    network.load_state_dict(weights)
    return network.eval(), description


def reload(kind: str, file: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """What a user of the file would call: normalised images to scores, or to features."""
    if kind == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
        return lambda images: cast("Any", session.run(None, {"image": images})[0])
    network: nn.Module
    if kind == "torch_export":
        network = torch.export.load(file).module()
    elif kind == "timm":
        import timm

        import mae_nas.timm  # noqa: F401 - registers the model

        network = timm.create_model("mae_nas", genotype=str(file)).eval()
    else:
        network = load_safetensors(file)[0]

    def scores(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            return network(torch.from_numpy(images)).numpy()

    return scores


def in_fresh_process(kind: str, file: Path, images: Path, scores: Path) -> None:
    """Let another Python read the file and write its scores of `images`, npy files both.

    Raises:
        ValueError: it could not, in one line.
    """
    # -P: not what lies in the current folder.
    words = [sys.executable, "-P", "-m", "mae_nas.network.export", kind, file, images, scores]
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise ValueError(f"export: {kind}: the file cannot be read back: {lines[-1]}")


if __name__ == "__main__":
    kind, *paths = sys.argv[1:]
    file, images, scores = map(Path, paths)
    run = reload(kind, file)
    given = np.load(images)
    parts = np.array_split(given, len(given) // 64 or 1)
    np.save(scores, np.concatenate([run(part) for part in parts]))
