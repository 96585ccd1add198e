"""Masked image reconstruction, Eq. (2) of MAE-NAS: the search's only loss."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mae_nas.backbone import FeatureInfo
from mae_nas.batch import Batch
from mae_nas.decoders import Decoder
from mae_nas.masking import Masking, VisibleMap, patchify, to_pixels, unpatchify
from mae_nas.objectives.base import Encode, Objective


class Reconstructed(NamedTuple):
    """What one masked batch gave: all (B, channels, S, S) but `hidden` (B, 1, S, S), bool."""

    branches: Sequence[Tensor]
    hidden: Tensor

    @property
    def prediction(self) -> Tensor:
        """The predicted image, in the units of the target."""
        branches = torch.stack(list(self.branches))
        return branches.sum(0, dtype=torch.promote_types(branches.dtype, torch.float32))


class Reconstruction(Objective):
    """Mean error over hidden pixels and channels, L^M of Eq. (2) (SimMIM, Sec. 3.4).

        L = Σ_{hidden} |x̂ − x| / (number of hidden pixels × channels)

    Hidden pixels are filled before the stem (a stem's 3 × 3 window would leak them otherwise), with
    0 after normalisation, the data set's mean colour. Under sparse masking a learned token per
    level takes the hidden sites' place before the decoder (SparK, Sec. 3.3).

    Args:
        decoder: features to image.
        features: channels and stride of F_1 … F_n.
        side: of the image, pixels.
        masking: ratio, patch size and mode.
        target: `image`, or `permuted`: the next image of the batch, a null arm in which the input
            says nothing about the target and everything else is the same.
        loss: `l1` or `l2`. Not stated in the paper ("akin to SimMIM"); SimMIM uses L1.
        norm_pix: normalise the target by each patch's own mean and deviation (MAE, Sec. 4.1).
    """

    def __init__(
        self,
        decoder: Decoder,
        features: Sequence[FeatureInfo],
        side: int,
        masking: Masking,
        target: Literal["image", "permuted"] = "image",
        loss: Literal["l1", "l2"] = "l1",
        norm_pix: bool = False,
    ) -> None:
        super().__init__()
        if target not in ("image", "permuted"):
            raise ValueError(f"target {target!r}: must be image or permuted")
        if loss not in ("l1", "l2"):
            raise ValueError(f"loss {loss!r}: must be l1 or l2")
        masking.patches(side)
        self.decoder = decoder
        self.side = side
        self.masking = masking
        self.target = target
        self.is_squared = loss == "l2"
        self.norm_pix = norm_pix
        self.stages = max(decoder.taps)
        self.strides = [feature.stride for feature in features]
        self.tokens = nn.ParameterDict()
        if masking.mode == "sparse":
            self._check_reach()
            for tap in decoder.taps:
                token = torch.empty(1, features[tap - 1].channels, 1, 1)
                self.tokens[str(tap)] = nn.Parameter(nn.init.trunc_normal_(token, std=0.02))

    def forward(self, encode: Encode, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.reconstruct(encode, batch)
        loss = self.error(output.prediction, self.target_of(batch), output.hidden)
        names = [f"rms_F{tap}" for tap in self.decoder.taps]
        if len(names) != len(output.branches):
            names = ["rms_prediction"]
        rms = [branch.detach().float().square().mean().sqrt() for branch in output.branches]
        return loss, dict(zip(names, rms, strict=True))

    def reconstruct(self, encode: Encode, batch: Batch) -> Reconstructed:
        """Mask, encode, densify, decode."""
        patches = self.masking.sample(batch.key, batch.index, self.side)
        hidden = to_pixels(patches, self.masking.patch_size)
        # masked_fill, not a product: a NaN times zero would survive.
        image = batch.image.masked_fill(hidden, 0.0)
        visible = None
        if self.masking.mode == "sparse":
            visible = self.masking.visible(patches)
        features = encode(image, visible)
        if visible is not None:
            features = self.densify(features, visible)
        return Reconstructed(self.decoder.branches(features), hidden)

    def picture(self, encode: Encode, batch: Batch) -> tuple[Tensor, Tensor]:
        """The prediction in the input's units; under `norm_pix` by the true patches' statistics."""
        output = self.reconstruct(encode, batch)
        if not self.norm_pix:
            return output.prediction, output.hidden
        size = self.masking.patch_size
        variance, mean = torch.var_mean(patchify(batch.image, size), dim=-1, keepdim=True)
        patches = patchify(output.prediction, size) * (variance + 1e-6).sqrt() + mean
        return unpatchify(patches, size), output.hidden

    def densify(self, features: Sequence[Tensor], visible: VisibleMap) -> Sequence[Tensor]:
        """Each level's token at its hidden sites, the feature elsewhere (SparK, Eq. 3)."""
        dense = list(features)
        for tap, token in self.tokens.items():
            level = int(tap) - 1
            at = visible.at(self.strides[level])
            dense[level] = torch.where(at, features[level], token.to(features[level].dtype))
        return dense

    def target_of(self, batch: Batch) -> Tensor:
        """What the prediction is compared with: (B, channels, S, S)."""
        image = batch.image
        if self.target == "permuted":
            if len(image) < 2:
                raise ValueError("target=permuted needs batches of at least 2 images")
            image = image.roll(-1, 0)
        if not self.norm_pix:
            return image
        patches = patchify(image, self.masking.patch_size)
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return unpatchify((patches - mean) * torch.rsqrt(variance + 1e-6), self.masking.patch_size)

    def error(self, prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        """Mean |error|, or squared error, over hidden pixels and channels."""
        if prediction.shape != target.shape:  # broadcasting would hide it
            raise ValueError(
                f"decoder: its image is {tuple(prediction.shape)} where {tuple(target.shape)} is "
                "wanted: images, channels, height, width"
            )
        # Masked before the square, whose gradient at a visible NaN would be one.
        difference = (prediction.to(target.dtype) - target).masked_fill(~hidden, 0.0)
        distance = difference.square() if self.is_squared else difference.abs()
        # Every image hides equally many pixels, so the count is known without asking the device.
        share = self.masking.effective_ratio(self.side)
        return distance.sum() / (distance.numel() * share)

    @torch.no_grad()
    def yardsticks(self, batches: Sequence[Batch]) -> dict[str, float]:
        """The loss of the best constant colour, and of each image's mean visible colour.

        The latter is left out under `norm_pix`, whose target has no colour.
        """
        sides = [self.masking.sample(b.key, b.index, self.side) for b in batches]
        hidden = torch.cat([to_pixels(patches, self.masking.patch_size) for patches in sides])
        target = torch.cat([self.target_of(b) for b in batches])
        image = torch.cat([b.image for b in batches])
        channels = target.shape[1]
        constant = torch.stack(
            [
                values.mean() if self.is_squared else values.median()
                for values in (target[:, c][hidden[:, 0]] for c in range(channels))
            ]
        ).view(1, channels, 1, 1)
        losses = {"constant": self.error(constant.expand_as(target), target, hidden).item()}
        if not self.norm_pix:
            seen = image.masked_fill(hidden, 0.0).sum((2, 3), keepdim=True)
            mean = seen / (~hidden).sum((2, 3), keepdim=True)
            losses["visible_mean"] = self.error(mean.expand_as(target), target, hidden).item()
        return losses

    def _check_reach(self) -> None:
        coarsest = self.strides[self.stages - 1]
        if self.decoder.is_pointwise and self.masking.patch_size >= coarsest:
            raise ValueError(
                f"mask.mode=sparse with a pointwise decoder and patch_size "
                f"{self.masking.patch_size} ≥ {coarsest}, the stride of its coarsest features, "
                "predicts a constant under the mask and learns nothing: use mask.mode=dense, or a "
                "decoder with spatial extent (decoder.kernel=3)"
            )
