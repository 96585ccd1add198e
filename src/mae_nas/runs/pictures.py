"""The pictures of a run, drawn from its readings, its metrics and its present weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mae_nas.data import StepData
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.plots import plot_alpha_heatmaps, plot_alpha_history, plot_cells, plot_losses
from mae_nas.runs.reconstructions import plot_reconstructions
from mae_nas.runs.tables import MetricsTable
from mae_nas.search import SearchModule, SearchReading
from mae_nas.search.collapse import chance_of_skips
from mae_nas.search.masked import MaskedModule
from mae_nas.spaces import SearchSpace

SHOWN = 8
NAMES = {"constant": "best constant colour", "visible_mean": "mean of visible pixels"}


@dataclass(frozen=True)
class Pictures:
    """Draws plots/ anew from all there is."""

    folder: RunFolder
    space: SearchSpace
    module: SearchModule
    data: StepData
    yardsticks: Mapping[str, float]  # losses of predictors that learn nothing, by name

    def draw(self, readings: Sequence[SearchReading]) -> None:
        """Draw everything; the last reading's genotype is the one shown."""
        folder, last = self.folder.plots, readings[-1]
        rows = [reading.to_dict() for reading in readings]
        primitives = {kind: self.space.primitives(kind) for kind in last.scores}
        plot_cells(last.genotype, folder)
        plot_alpha_heatmaps(last.scores, self.space.edges, primitives, last.genotype, folder)
        bands = {kind: middle_of_chance(self.space, kind) for kind in last.scores}
        plot_alpha_history(rows, primitives, folder, bands)
        draw_masked(self.folder, self.module, self.data, self.yardsticks, rows)


def draw_masked(
    folder: RunFolder,
    module: MaskedModule,
    data: StepData,
    yardsticks: Mapping[str, float],
    rows: Sequence[Mapping[str, object]],
) -> None:
    """Draw the losses and what the first held-out images are rebuilt as.

    Args:
        folder: of the run.
        module: at its present weights.
        data: of the run.
        yardsticks: losses of predictors that learn nothing, by name.
        rows: readings, as they are stored.
    """
    named = {NAMES.get(name, name): loss for name, loss in yardsticks.items()}
    plot_losses(MetricsTable(folder.metrics).rows(), rows, named, folder.plots)
    batches = list(data.preview(SHOWN))  # as large as fit in memory
    shown = [picture for each in batches if (picture := module.picture(each)) is not None]
    if shown:
        image = torch.cat([batch.image for batch in batches])
        prediction, hidden = map(torch.cat, zip(*shown, strict=True))
        images = [image, prediction.to(image.dtype)]
        inputs, guesses = (data.denormalise(image).cpu().numpy() for image in images)
        plot_reconstructions(inputs, hidden[:, 0].cpu().numpy(), guesses, folder.plots)


def middle_of_chance(space: SearchSpace, kind: str, share: float = 0.95) -> tuple[float, float]:
    """The skip counts between which `share` of noise cells lie."""
    cumulative = np.cumsum(chance_of_skips(space, kind))
    tail = (1 - share) / 2
    low, high = np.searchsorted(cumulative, [tail, 1 - tail])
    return float(low), float(high)
