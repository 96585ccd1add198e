"""Does it learn what it should, from images with structure, beyond what a decoder alone can?"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.optim import Adam

from mae_nas.batch import Batch
from mae_nas.masking import Masking
from mae_nas.objectives import Reconstruction
from mae_nas.randomness import derive_key, integers_below
from mae_nas.relaxations import DARTS
from mae_nas.spaces import S2
from mae_nas.supernet import Supernet, SupernetSize

MakeSearch = Callable[..., tuple[DARTS, Supernet, Reconstruction]]


def waves(side: int, count: int) -> Tensor:
    """Plane waves of random direction, length, phase and colour, normalised."""
    direction, phase = 6.3 * torch.rand(2, count, 1, 1, 1)
    cycles, colour = 1 + torch.rand(count, 1, 1, 1), torch.randn(count, 3, 1, 1)
    row, column = torch.meshgrid(*2 * [torch.arange(side) / side], indexing="ij")
    across = row * direction.cos() + column * direction.sin()
    images = colour * torch.sin(6.3 * cycles * across + phase)
    return (images - images.mean()) / images.std()


def train(
    parts: tuple[DARTS, Supernet, Reconstruction],
    tiles: Tensor,
    steps: int,
    is_encoder_frozen: bool = False,
) -> float:
    """The mean loss of the last tenth of the steps."""
    relaxation, supernet, objective = parts
    weights = list(objective.parameters())
    weights += [] if is_encoder_frozen else list(supernet.parameters())
    optimizer = Adam(weights, 0.01)
    losses: list[Tensor] = []
    for step in range(steps):
        index = integers_below(len(tiles), torch.tensor([derive_key(step, i) for i in range(16)]))
        batch = Batch(tiles[index], index, derive_key(0, 2, step))
        mixtures = relaxation.mixture()
        loss, _ = objective(lambda i, v, m=mixtures: supernet(i, m, v), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses[-steps // 10 :]).mean().item()


# Sharp test 18.
@pytest.mark.slow
def test_search_beats_the_mean_of_visible_pixels_and_a_frozen_encoder(
    make_search: MakeSearch,
) -> None:
    tiles = waves(16, 256)
    make = partial(make_search, S2(), 16, 3, SupernetSize(4, 3), Masking(0.5, 4))
    parts = make()
    everything = Batch(tiles, torch.arange(len(tiles)), 1)
    yardstick = parts[2].yardsticks([everything])["visible_mean"]
    learned = train(parts, tiles, 60)
    assert learned < 0.9 * yardstick
    assert learned < 0.93 * train(make(), tiles, 60, is_encoder_frozen=True)
