"""Figure 2 of the paper: what supernets rebuild, with the hierarchical decoder and without."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from evidence import Record, Sweep, axes_at, check_replicates, grouped, losses_of
from inference import spread
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tables import costs, table

from mae_nas.runs import canvas

AXES = {
    "smoke": ("seed=0", "mask.ratio=0.5"),
    "small": ("seed=0", "mask.ratio=0.2,0.5,0.8", "trainer.max_steps=800"),
    "full": ("seed=0", "mask.ratio=0.2,0.5,0.8"),
}
KEYS = ("mask.ratio", "decoder.upsample")
ARMS = {"nearest": "hierarchical", "shuffle": "simmim"}
SHOWN, ZOOM = 6, 5
HIDDEN = (0.60, 0.68, 0.80)


def sweeps(scale: str, _: Path) -> Iterator[Sweep]:
    """Both decoders on the same images and masks."""
    yield Sweep("searches", (*axes_at(scale, AXES), "decoder=hierarchical,simmim"))


def extra(run: Path) -> Mapping[str, Any]:
    """The pixels that the run drew, in its record: uint8 arrays as npz, in base64."""
    file = run / "plots" / "reconstructions.npz"
    return {"reconstructions": base64.b64encode(file.read_bytes()).decode()}


def pixels_of(record: Record) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Images and predictions (N, H, W, 3) in [0, 1], and hidden (N, H, W, 1)."""
    with np.load(BytesIO(base64.b64decode(record["reconstructions"]))) as arrays:
        images, predictions = (
            arrays[name][:SHOWN].transpose(0, 2, 3, 1) / 255 for name in ("images", "predictions")
        )
        hidden = arrays["hidden"][:SHOWN]
    for axis in (1, 2):
        hidden = hidden.repeat(images.shape[axis] // hidden.shape[axis], axis)
    return images, predictions, hidden[..., None]


def tables(records: Sequence[Record]) -> str:
    """Held-out losses of each ratio and decoder, and the error of what is shown."""
    groups = grouped(records, *KEYS)
    check_replicates(groups, ("mask.ratio", "decoder"))
    rows = []
    for (ratio, upsample), same in groups.items():
        images, predictions, hidden = pixels_of(same[0])
        error = 255 * np.abs(images - predictions)[hidden[..., 0]].mean()
        steps = same[0]["final"]["step"]
        loss = spread(losses_of(same), 3)
        yardstick = f"{same[0]['yardsticks']['visible_mean']:.3f}"
        rows.append((ratio, ARMS[upsample], len(same), steps, loss, yardstick, f"{error:.1f}"))
    head = ("ratio", "decoder", "seeds", "steps", "held-out loss", "loss of the visible mean")
    return (
        "# Reconstructions with and without the hierarchical decoder\n\n"
        + costs(records)
        + "\n"
        + table((*head, f"hidden pixels of the {SHOWN} shown: mean error, of 255"), rows)
    )


def results(records: Sequence[Record]) -> str:
    """The README's lines: one picture, at the middle ratio."""
    middle = sorted({record["config"]["mask"]["ratio"] for record in records})
    name = _name(middle[len(middle) // 2])
    return (
        f"![images rebuilt with and without the hierarchical decoder](experiments/figure2/{name})\n"
    )


def _name(ratio: float) -> str:
    return f"ratio_{ratio:g}.png"


@canvas.styled
def draw(records: Sequence[Record], folder: Path) -> None:
    """A sheet for each ratio: image, what was visible, and both decoders' predictions."""
    for (ratio,), same in grouped(records, "mask.ratio").items():
        rows = {}
        for upsample, name in ARMS.items():
            mine = [r for r in same if r["config"]["decoder"]["upsample"] == upsample]
            if mine:
                images, predictions, hidden = pixels_of(mine[0])
                if rows and not np.array_equal(rows["visible"], np.where(hidden, HIDDEN, images)):
                    raise ValueError(f"ratio {ratio:g}: decoders with other images or masks")
                rows["image"] = images
                rows["visible"] = np.where(hidden, HIDDEN, images)
                rows[f"{name}\nprediction"] = predictions
                rows[f"{name}\npasted in"] = np.where(hidden, predictions, images)
        figure = Figure(figsize=(9.5, 1.45 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), SHOWN, squeeze=False)
        for across, (label, pictures) in zip(panels, rows.items(), strict=True):
            for panel, picture in zip(across, pictures, strict=False):
                panel.imshow(picture.repeat(ZOOM, 0).repeat(ZOOM, 1), interpolation="nearest")
                panel.set_xticks([])
                panel.set_yticks([])
                panel.grid(visible=False)
            across[0].set_ylabel(label, rotation=0, ha="right", va="center")
        figure.suptitle(f"Mask ratio {ratio:g}, held-out images", fontsize=11)
        canvas.save(figure, folder / _name(ratio))
