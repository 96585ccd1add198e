"""Checkpoints that a kill cannot spoil, and that a stranger cannot use to run code."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mae_nas.checks import first_line
from mae_nas.runs.files import replacing
from mae_nas.runs.folder import RunFolder

FORMAT = "mae_nas.search/1"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces atomically: the file is the old one or the new one.

    Lightning's own goes through a temporary file that may lie on another file system, where the
    last move is a copy that a kill can cut short.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: _PATH,
        storage_options: Any | None = None,  # noqa: ANN401, ARG002 - Lightning's
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(target) as beside, beside.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise OSError(f"{target}: could not be written ({first_line(error)})") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a search, as plain tensors and numbers; nothing in it is executed.

    Raises:
        ValueError: in one line, if it is missing, truncated, foreign, or holds other classes.
    """
    try:
        with warnings.catch_warnings():  # of what a foreign file may be
            warnings.simplefilter("ignore")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such checkpoint") from None
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise ValueError(
                f"{path}: holds objects other than tensors and numbers; it was not written by "
                "mae-nas and was not opened"
            ) from None
        raise ValueError(f"{path}: truncated or not a checkpoint") from None
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - bytes of anything else lead torch anywhere
        raise ValueError(f"{path}: truncated or not a checkpoint") from None
    parts = {"state_dict": dict, "optimizer_states": list, "loops": dict, "callbacks": dict}
    is_ours = isinstance(checkpoint, dict) and checkpoint.get("format") == FORMAT
    if not is_ours or not all(isinstance(checkpoint.get(k), t) for k, t in parts.items()):
        raise ValueError(f"{path}: not a checkpoint of mae-nas")
    return checkpoint


def checkpoint_in(text: str, key: str = "checkpoint") -> Path:
    """The checkpoint that a run folder holds, or the file itself; ValueError if there is none."""
    if not text:
        raise ValueError(f"{key}: needed, e.g. {key}=runs/train/2026-01-31_12-00-00")
    path = Path(text)
    if not path.exists():
        raise ValueError(f"{key}: {path} does not exist; name a run folder or a checkpoint")
    return RunFolder(path).checkpoint if path.is_dir() else path


def check_fits(
    checkpoint: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    identity: Mapping[str, str],
    path: Path,
) -> None:
    """ValueError unless the checkpoint is of the search about to continue.

    Args:
        checkpoint: as read.
        state: the search's own `state_dict`.
        identity: hashes of its configuration and of its data.
        path: for the error.
    """
    names = {"config_hash": "configuration", "data_hash": "set of images"}
    names |= {"classes": "set of classes", "genotype": "genotype", "model": "model of timm"}
    names["size"] = "size of the network"
    names |= {"preprocessing": "side, or mean and deviation of the images"}
    for key, value in identity.items():
        if checkpoint.get(key) != value:
            raise ValueError(f"{path}: belongs to a run with another {names[key]}")
    saved = checkpoint["state_dict"]
    wrong = sorted(saved.keys() ^ state.keys()) or sorted(
        name for name in state if getattr(saved[name], "shape", None) != state[name].shape
    )
    if wrong:
        raise ValueError(f"{path}: its tensors differ from this run's, first {wrong[0]}")
