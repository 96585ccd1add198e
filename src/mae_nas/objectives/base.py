"""What an objective is: a head on the encoder, a view of the batch, and a loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from mae_nas.batch import Batch
from mae_nas.masking import VisibleMap

Encode = Callable[[Tensor, VisibleMap | None], Sequence[Tensor]]
"""(image, visible) -> F_1 … F_n: the encoder with this step's mixtures bound."""


class Objective(nn.Module, ABC):
    """A training signal. It masks or transforms the batch itself, and never logs.

    `stages` says how many feature maps it needs, counted from the finest.
    """

    stages: int

    @abstractmethod
    def forward(self, encode: Encode, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar, float32 or wider) and detached values worth recording, by name."""

    def yardsticks(self, batches: Sequence[Batch]) -> dict[str, float]:  # noqa: ARG002
        """Losses of predictors that learn nothing, by name, to read the search's own loss by."""
        return {}

    def picture(self, encode: Encode, batch: Batch) -> tuple[Tensor, Tensor] | None:  # noqa: ARG002
        """Predicted images (B, C, S, S) and hidden pixels (B, 1, S, S), if it makes such."""
        return None
