"""The pictures of a search, drawn from its readings, its metrics and its present weights."""

from collections.abc import Mapping, Sequence

import numpy as np

from mae_nas.data import SearchData
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.heatmaps import plot_alpha_heatmaps
from mae_nas.runs.plots import plot_alpha_history, plot_cells, plot_losses
from mae_nas.runs.reconstructions import plot_reconstructions
from mae_nas.runs.tables import MetricsTable
from mae_nas.search import Reading, SearchModule
from mae_nas.search.collapse import chance_of_skips
from mae_nas.spaces import SearchSpace

SHOWN = 8
NAMES = {"constant": "best constant colour", "visible_mean": "mean of visible pixels"}


class Pictures:
    """Draws plots/ anew from all there is.

    Args:
        folder: of the run.
        space: for the edges and candidates of the heat maps.
        module: the search; asked for reconstructions, in evaluation mode.
        data: for the images of the reconstructions.
        yardsticks: losses of predictors that learn nothing, by name.
    """

    def __init__(
        self,
        folder: RunFolder,
        space: SearchSpace,
        module: SearchModule,
        data: SearchData,
        yardsticks: Mapping[str, float],
    ) -> None:
        self.folder = folder
        self.space = space
        self.module = module
        self.data = data
        self.yardsticks = {NAMES.get(name, name): loss for name, loss in yardsticks.items()}

    def draw(self, readings: Sequence[Reading]) -> None:
        """Draw everything; the last reading's genotype is the one shown."""
        folder, last = self.folder.plots, readings[-1]
        folder.mkdir(exist_ok=True)
        rows = [reading.to_dict() for reading in readings]
        primitives = {kind: self.space.primitives(kind) for kind in last.scores}
        plot_cells(last.genotype, folder)
        plot_alpha_heatmaps(last.scores, self.space.edges, primitives, last.genotype, folder)
        bands = {kind: middle_of_chance(self.space, kind) for kind in last.scores}
        plot_alpha_history(rows, primitives, folder, bands)
        plot_losses(MetricsTable(self.folder.metrics).rows(), rows, self.yardsticks, folder)
        self._draw_reconstructions()

    def _draw_reconstructions(self) -> None:
        preview = self.data.preview(SHOWN)
        shown = self.module.picture(preview)
        if shown is not None:
            prediction, hidden = shown
            plot_reconstructions(
                self.data.denormalise(preview.image).cpu().numpy(),
                hidden[:, 0].cpu().numpy(),
                self.data.denormalise(prediction.to(preview.image.dtype)).cpu().numpy(),
                self.folder.plots,
            )


def middle_of_chance(space: SearchSpace, kind: str, share: float = 0.95) -> tuple[float, float]:
    """The skip counts between which `share` of noise cells lie."""
    cumulative = np.cumsum(chance_of_skips(space, kind))
    tail = (1 - share) / 2
    low, high = np.searchsorted(cumulative, [tail, 1 - tail])
    return float(low), float(high)
