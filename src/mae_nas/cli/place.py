"""Where a genotype's network is to stand: the options that `profile` and `derive` share."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mae_nas.cli.arguments import decimal_number, whole_number
from mae_nas.cli.library import presets
from mae_nas.cli.spelling import suggest

if TYPE_CHECKING:
    import torch

    from mae_nas.network.complexity import Place

_SIZES = ("width", "depth", "stem", "auxiliary")
PLACE = {"network": "cifar", **{f"network.{key}": "" for key in _SIZES}}
PLACE |= {"classes": "", "side": "", "channels": ""}
"""Default of each option that `read_place` reads."""
DEVICES = ("auto", "cpu", "cuda", "mps")


def check_choices(options: Mapping[str, str], choices: Mapping[str, Sequence[str]]) -> None:
    """ValueError of the first option that is none of its choices."""
    for key, allowed in choices.items():
        if options[key] not in allowed:
            raise ValueError(f"{key}={options[key]}: use {' or '.join(allowed)}")


def read_place(options: Mapping[str, str], images: Mapping[str, int] | None = None) -> "Place":
    """Where the networks stand; ValueError in one line.

    Args:
        options: with the keys of `PLACE`.
        images: `side` and `channels` of images at hand; they hold where nothing else is said and
            the network's stem is that for their side, since cells may be meant for other images.
            The small stem, which halves sides once, is for smaller ones too.
    """
    known = presets("network")
    if options["network"] not in known:
        near = suggest(options["network"], known)
        raise ValueError(f"network={options['network']}: use {', '.join(known)}{near}")
    values = known[options["network"]]
    for key in ("width", "depth"):
        if given := options[f"network.{key}"]:
            values[key] = whole_number(f"network.{key}", given)
    values["stem"] = options["network.stem"] or values["stem"]
    if options["network.auxiliary"] not in ("", "true", "false"):
        raise ValueError(f"network.auxiliary={options['network.auxiliary']}: use true or false")
    if options["network.auxiliary"]:
        values["auxiliary"] = options["network.auxiliary"] == "true"
    from mae_nas.backbone import stem_for  # torch, seconds
    from mae_nas.network import NetworkSize
    from mae_nas.network.complexity import Place
    from mae_nas.network.derived import SIDES

    size = NetworkSize(**values)
    classes = 1000 if size.stem == "imagenet" else 10
    usual = {"side": SIDES[size.stem], "channels": 3, "classes": classes}
    if images:
        is_smaller = size.stem == "small" and images["side"] <= SIDES["small"]
        usual |= images if is_smaller or stem_for(images["side"]) == size.stem else {}
    numbers = {
        key: whole_number(key, options[key]) if options[key] else default
        for key, default in usual.items()
    }
    return Place(size, **numbers)


def named_device(name: str) -> "torch.device":
    """The device that `device=NAME` means here; ValueError in one line if there is none."""
    import torch

    from mae_nas.network.latency import device_type

    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if name in available and not available[name]():
        raise ValueError(f"device={name}: torch finds none here; use device=cpu")
    return torch.device(device_type(name))


def million(key: str, text: str) -> float:
    """KEY=TEXT as millions."""
    value = decimal_number(key, text)
    if value > 1e5:
        raise ValueError(f"{key}={text}: is in millions, e.g. 600")
    return value
