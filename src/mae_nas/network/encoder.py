"""What a network offers that is pretrained, probed and embedded with, ours or another's."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from mae_nas.backbone import FeatureInfo
from mae_nas.network.heads import pooled


class Encoder(nn.Module, ABC):
    """Images to maps of three resolutions, and to one vector.

    Attributes:
        feature_info: of the maps F_1, F_2, F_3.

    Shapes:
        image: (B, channels, S, S), normalised.
    """

    feature_info: Sequence[FeatureInfo]

    @abstractmethod
    def maps(self, image: Tensor) -> Sequence[Tensor]:
        """F_1, F_2, F_3 at the ends of the stages."""

    def features(self, image: Tensor) -> Tensor:
        """The mean of F_3 over its sites, (B, C): what a classifier sees, probes and embeddings."""
        return pooled(self.maps(image)[-1])

    def forward(self, image: Tensor) -> Tensor:
        """The features, where there is no classifier."""
        return self.features(image)
