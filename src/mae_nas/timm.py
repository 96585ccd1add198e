"""`import mae_nas.timm`: found networks as models of timm.

timm.create_model("mae_nas", genotype="DARTS_V2", width=36, depth=20, stem="cifar")
timm.create_model("mae_nas", genotype=FILE)   # of mae-nas export format=timm, with its weights
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from mae_nas.backbone import StemName
from mae_nas.genotype import Genotype
from mae_nas.network.derived import SIDES, DerivedNetwork, NetworkSize
from mae_nas.network.export import described
from mae_nas.network.heads import pooled
from mae_nas.spaces import S0
from mae_nas.spaces.derivation import named_genotype


class MaeNas(nn.Module):
    """A found network behind timm's interface.

    Args:
        genotype: of the cells.
        size: of the network.
        num_classes: number of scores; 0 for pooled features.
        in_chans: channels of the image.
        drop_rate: of the pooled features in training.
        global_pool: `avg`, or empty for maps.
    """

    def __init__(
        self,
        genotype: Genotype,
        size: NetworkSize,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.network = DerivedNetwork(genotype, size, in_chans, SIDES[size.stem], num_classes)
        features = self.network.feature_info
        self.num_classes, self.num_features = num_classes, features[-1].channels
        self.head_hidden_size = self.num_features
        self.drop_rate, self.global_pool = drop_rate, global_pool
        taps = self.network.backbone.taps
        self.feature_info = [
            {
                "num_chs": info.channels,
                "reduction": info.stride,
                "module": f"network.backbone.cells.{tap}",
            }
            for info, tap in zip(features, taps, strict=True)
        ]

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map."""
        return self.network.maps(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooled features, and their scores unless `pre_logits`."""
        if self.global_pool:
            x = pooled(x)
        x = nn.functional.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,  # noqa: ARG002 - timm's; there is none
        stop_early: bool = False,  # noqa: ARG002 - as above, all maps are made
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps at the stages' ends, F_1 to F_3: those of `indices`, or the last so many."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt}: is NCHW here")
        maps = list(self.network.maps(x))
        if indices is None:
            wanted = maps
        elif isinstance(indices, int):
            wanted = maps[-indices:]
        else:
            wanted = [maps[index] for index in indices]
        return wanted if intermediates_only else (maps[-1], wanted)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,  # noqa: ARG002 - timm's
        prune_head: bool = True,
    ) -> list[int]:
        """Give up the classifier; every map is needed for the next."""
        if prune_head:
            self.reset_classifier(0)
        return list(range(3))[-indices:] if isinstance(indices, int) else list(indices)

    def get_classifier(self) -> nn.Module:
        return self.network.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for as many classes; 0 for none."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        like = next(self.network.parameters())
        made = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.network.classifier = made.to(like.device, like.dtype)

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Layers in order, for rates that fall with depth."""
        cells = r"^network\.backbone\.cells\.(\d+)" if not coarse else r"^network\.backbone\.cells"
        return {"stem": r"^network\.backbone\.stem", "blocks": [(cells, None)]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable:
            raise ValueError("gradient checkpointing is not part of this model")


@register_model
def mae_nas(
    pretrained: bool = False,
    genotype: str = "DARTS_V2",
    **kwargs: Any,  # noqa: ANN401 - timm's
) -> nn.Module:
    """A found network.

    Args:
        pretrained: there are no published weights: must be false.
        genotype: a published name, `random:SEED`, file, run folder or text; or a file of `mae-nas
            export format=timm`, which says sizes and classes as well and whose weights are loaded
            (but for the classifier's, with another `num_classes`).
        kwargs: `width`, `depth`, `stem` as `NetworkSize`, and timm's own.
    """
    if pretrained:
        raise ValueError("mae_nas: there are no pretrained weights; give genotype=FILE")
    cfg: dict[str, object] = {"classifier": "network.classifier", "interpolation": "bilinear"}
    cfg |= {"first_conv": "network.backbone.stem.conv0", "crop_pct": 1.0, "url": ""}
    file = Path(genotype) if genotype.endswith(".safetensors") else None
    if file is None:
        size = NetworkSize(
            kwargs.pop("width", 36),
            kwargs.pop("depth", 20),
            cast("StemName", kwargs.pop("stem", "cifar")),
            auxiliary=False,
        )
        found, side = named_genotype(genotype, S0()), SIDES[size.stem]
        channels = kwargs.get("in_chans", 3)
        cfg |= {"mean": (0.5,) * channels, "std": (0.5,) * channels}
        cfg |= {"num_classes": kwargs.get("num_classes", 1000)}
    else:
        said = described(file)
        size = replace(said.place.size, auxiliary=False)
        found, side, channels = said.genotype, said.place.side, said.place.channels
        kwargs = {"num_classes": len(said.classes), "in_chans": channels} | kwargs
        if kwargs["in_chans"] != channels:
            raise ValueError(f"{file}: is of channels {channels}, not {kwargs['in_chans']}")
        cfg |= {"mean": said.mean, "std": said.std, "num_classes": len(said.classes)}
        cfg |= {"label_names": list(said.classes)}
    cfg |= {"input_size": (channels, side, side), "pool_size": None}
    given = kwargs.pop("pretrained_cfg", None)
    stages = kwargs.get("out_indices", ())
    is_last = isinstance(stages, int)  # so many, in timm
    if not (1 <= stages <= 3 if is_last else all(-3 <= index < 3 for index in stages)):
        raise ValueError(f"mae_nas: out_indices {stages}: there are three maps, 0 to 2")

    def make(**options: Any) -> MaeNas:  # noqa: ANN401 - timm's
        model = MaeNas(found, size, **options)
        if file is not None:
            _load(model, file)
        return model

    return build_model_with_cfg(
        make,
        "mae_nas",
        pretrained,
        pretrained_cfg=given or cfg,
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
        **kwargs,
    )


def _load(model: MaeNas, file: Path) -> None:
    """All weights of the file, but those of a classifier of other classes."""
    weights, state = load_file(file), model.state_dict()
    head = ("network.classifier.weight", "network.classifier.bias")
    wrong = [
        name
        for name in weights.keys() | state.keys()
        if name not in head
        and (name not in weights or name not in state or weights[name].shape != state[name].shape)
    ]
    if wrong:
        raise ValueError(f"{file}: its tensors are not this model's, first {sorted(wrong)[0]}")
    same = [name for name in head if name in state and state[name].shape == weights[name].shape]
    kept = {name: value for name, value in weights.items() if name not in head or name in same}
    model.load_state_dict(kept, strict=False)
