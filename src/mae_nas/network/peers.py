"""Networks of other families, from timm: measured beside ours, and pretrained beside ours."""

import difflib
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mae_nas.backbone import FeatureInfo
from mae_nas.checks import first_line
from mae_nas.network.encoder import Encoder

STAGES = 3


def check_known(name: str, key: str) -> None:
    """ValueError, naming the nearest, unless timm has such a model; `key` is who asks."""
    import timm  # seconds

    if name not in timm.list_models():
        near = difflib.get_close_matches(name, timm.list_models(), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{key}: {name}: timm has no such model{hint}")


def timm_network(name: str, channels: int, classes: int) -> nn.Module:
    """A model of timm's without weights."""
    import timm

    return timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)


class TimmEncoder(Encoder):
    """A convolutional network of timm's up to its last map, without weights.

    Its last three stages are F_1, F_2 and F_3, so that every layer is trained by what is rebuilt
    from them; what timm puts behind its last map (a head's convolution) is not part of it.

    Args:
        name: of the model.
        channels: of the image.

    Shapes:
        image: (B, channels, S, S), S a multiple of the last stride.

    Raises:
        ValueError: timm has no such model, or it gives no maps of falling resolution.
    """

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        import timm

        check_known(name, "model")
        try:
            self.body = timm.create_model(
                name, pretrained=False, features_only=True, in_chans=channels
            )
        except (RuntimeError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"model: {name}: timm gives no features of it ({first_line(error)}); use a "
                "convolutional network, e.g. resnet18"
            ) from None
        self.name = name
        infos = [
            FeatureInfo(info["num_chs"], info["reduction"])
            for info in cast("Any", self.body).feature_info.get_dicts()
        ]
        strides = [info.stride for info in infos]
        if len(strides) < STAGES or strides != sorted(set(strides)):
            raise ValueError(
                f"model: {name}: has maps of strides {', '.join(map(str, strides))}; use a network "
                "with three or more of falling resolution, e.g. resnet18"
            )
        self.feature_info = infos[-STAGES:]
        self.to(memory_format=torch.channels_last)

    def maps(self, image: Tensor) -> Sequence[Tensor]:
        return self.body(image.contiguous(memory_format=torch.channels_last))[-STAGES:]
