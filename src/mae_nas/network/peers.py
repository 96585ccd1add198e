"""Networks of other families, from timm, to be measured beside ours."""

import difflib

from torch import nn


def check_known(name: str) -> None:
    """ValueError, naming the nearest, unless timm has such a model."""
    import timm  # seconds

    if name not in timm.list_models():
        near = difflib.get_close_matches(name, timm.list_models(), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"beside: {name}: timm has no such model{hint}")


def timm_network(name: str, channels: int, classes: int) -> nn.Module:
    """A model of timm's without weights."""
    import timm

    return timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)
