"""What every step on the masked loss shares, whatever encodes: Eq. (2) of MAE-NAS without its α."""

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from mae_nas.batch import Batch
from mae_nas.objectives import Encode, Objective
from mae_nas.stepping import Reading, StepModule, evaluating


class MaskedReading(Reading):
    """A reading that judges by the masked loss on held-out images, fixed masks."""

    held_out_loss: float


class MaskedModule(StepModule):
    """An encoder and an objective that judges what it makes of images that are partly hidden.

    Args:
        objective: the loss.
        epochs: see `StepModule`, as the others.
        steps_per_epoch: ...
        grad_clip: ...
    """

    def __init__(
        self, objective: Objective, epochs: int, steps_per_epoch: int, grad_clip: float
    ) -> None:
        super().__init__(epochs, steps_per_epoch, grad_clip)
        self.objective = objective

    @abstractmethod
    def encoder(self, batch: Batch) -> Encode:
        """Images and what is visible to feature maps, for this batch at the present weights."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """L^M; a pure function of the weights and of the batch."""
        return self.objective(self.encoder(batch), batch)

    @torch.no_grad()
    def held_out_loss(self, batches: Iterable[Batch]) -> float:
        """Mean masked loss over held-out images, with running statistics and fixed masks."""
        losses, images = [], []
        with evaluating(self):
            for batch in batches:
                losses.append(self.loss(batch)[0])
                images.append(len(batch.image))
        return self.mean_over(losses, images)

    @torch.no_grad()
    def picture(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Predicted images and hidden pixels (B, 1, S, S) of a batch, if the objective has such."""
        with evaluating(self):
            return self.objective.picture(self.encoder(batch), batch)
