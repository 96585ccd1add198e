"""A reading: what the search would answer if it stopped now, and how it is doing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from mae_nas.batch import Batch
from mae_nas.genotype import Genotype
from mae_nas.relaxations import relative_entropy
from mae_nas.search.collapse import Verdict, chance_at_least, judge, mean_skips
from mae_nas.search.masked import MaskedReading
from mae_nas.search.module import SearchModule
from mae_nas.spaces import SearchSpace
from mae_nas.spaces.derivation import derive


@dataclass(frozen=True)
class SearchReading(MaskedReading):
    """The state of a search after `step` steps, one line of genotypes.jsonl.

    Args:
        step: steps done.
        epoch: the same in epochs of the weight split.
        genotype: derived by DARTS's rule.
        scores: per kind, (E, K) mixing weights, edges in the space's order.
        cell_scores: per kind, the sum of the chosen mixing weights.
        held_out_loss: masked loss on held-out images, fixed masks.
        skips: per kind, skip connections among the kept edges.
        chance: per kind, P(noise α derive at least as many skips).
        entropy: per kind, mean entropy of an edge's mixing weights, over its maximum: 1 is uniform.
        undetermined: kinds whose α no gradient reaches (their cell is an accident of the start).
        warmed_up: whether α was being trained, so that the reading counts for the verdict.
        verdict: see `mae_nas.search.collapse.judge`.
        chance_normal: mean skips of a normal cell derived from noise; None in older readings.
    """

    step: int
    epoch: float
    genotype: Genotype
    scores: dict[str, list[list[float]]]
    cell_scores: dict[str, float]
    held_out_loss: float
    skips: dict[str, int]
    chance: dict[str, float]
    entropy: dict[str, float]
    undetermined: list[str]
    warmed_up: bool
    verdict: Verdict
    chance_normal: float | None = None

    def mixing(self) -> Mapping[str, Sequence[Sequence[float]]]:
        return self.scores

    def is_news(self, before: "SearchReading | None") -> bool:
        return self.verdict != (before.verdict if before else "ok")

    def in_words(self) -> str:
        """The verdict, skips beside what chance gives."""
        skips, edges = self.skips["normal"], len(self.genotype.normal.edges)
        count = "1 skip" if skips == 1 else f"{skips} skips"
        if not self.warmed_up:
            return f"the normal cell keeps {count} in {edges} edges; α has had no step"
        return (
            f"verdict {self.verdict} at step {self.step}: the normal cell keeps {count} in "
            f"{edges} edges{chance_in_words(self)}; of cells derived from noise, "
            f"{100 * self.chance['normal']:.1f} % keep {skips} or more"
        )

    def to_dict(self) -> dict[str, object]:
        """Plain values, the genotype in its own schema."""
        fields = asdict(self)
        del fields["genotype"]
        return {**self.genotype.to_dict(), **fields}

    @classmethod
    def from_dict(cls, fields: dict[str, object]) -> "SearchReading":
        """The inverse of `to_dict`."""
        names = [name for name in cls.__dataclass_fields__ if name != "genotype"]
        values = {name: fields[name] for name in names if name in fields}
        if missing := [name for name in names if name not in {"chance_normal", *values}]:
            raise ValueError(f"a reading without {', '.join(missing)} was not written by a search")
        return cls(genotype=Genotype.from_dict(fields), **values)  # type: ignore[arg-type]


def take_reading(
    module: SearchModule,
    space: SearchSpace,
    held_out: Iterable[Batch],
    earlier: Sequence[SearchReading],
) -> SearchReading:
    """Read the search without disturbing it.

    Args:
        module: the search, after a whole number of steps.
        space: its space.
        held_out: batches that neither level trains on.
        earlier: the readings before this one, in order.
    """
    scores = {k: s.cpu().double().numpy() for k, s in module.relaxation.scores().items()}
    genotype, cell_scores = derive(scores, space)
    skips = {kind: count_skips(genotype, space, kind) for kind in scores}
    is_warm = module.global_step > module.arch_start
    history = [reading.skips["normal"] for reading in earlier if reading.warmed_up]
    if is_warm:
        history.append(skips["normal"])
    return SearchReading(
        step=module.global_step,
        epoch=module.global_step / module.steps_per_epoch,
        genotype=genotype,
        scores={kind: table.tolist() for kind, table in scores.items()},
        cell_scores=cell_scores,
        held_out_loss=module.held_out_loss(held_out),
        skips=skips,
        chance={kind: chance_at_least(space, kind, skips[kind]) for kind in skips},
        entropy={kind: relative_entropy(table) for kind, table in scores.items()},
        undetermined=undetermined_kinds(module),
        warmed_up=is_warm,
        verdict=judge(history, space),
        chance_normal=mean_skips(space, "normal"),
    )


def chance_in_words(reading: SearchReading) -> str:
    """What stands behind a count of skips in the normal cell: by itself it says nothing."""
    return "" if reading.chance_normal is None else f" (chance {reading.chance_normal:.1f})"


def count_skips(genotype: Genotype, space: SearchSpace, kind: str) -> int:
    """Skip connections among the edges of the `kind` cell."""
    names = {
        name
        for names, flags in zip(space.primitives(kind), space.flags(kind, "is_skip"), strict=True)
        for name, is_skip in zip(names, flags, strict=True)
        if is_skip
    }
    return sum(edge.primitive in names for edge in genotype.cells[kind].edges)


class EdgeRow(NamedTuple):
    """A kept edge of a `kind` cell: `node` adds `operation` of node `input`."""

    kind: str
    node: int
    input: int
    operation: str
    weight: float  # the mixing weight that it was kept for


def edge_rows(reading: SearchReading, space: SearchSpace) -> list[EdgeRow]:
    """The genotype's edges, to be shown as a table."""
    rows = []
    for kind, cell in reading.genotype.cells.items():
        for edge in cell.edges:
            place = space.edges.index((edge.source, edge.target))
            candidate = list(space.primitives(kind)[place]).index(edge.primitive)
            weight = reading.scores[kind][place][candidate]
            rows.append(EdgeRow(kind, edge.target, edge.source, edge.primitive, weight))
    return rows


def reading_row(reading: SearchReading, space: SearchSpace) -> dict[str, float | str]:
    """The reading's numbers by name, skips beside the mean of chance, to be shown as curves."""
    row: dict[str, float | str] = {
        "step": reading.step,
        "epoch": reading.epoch,
        "held_out_loss": reading.held_out_loss,
        "verdict": reading.verdict,
    }
    for kind, skips in reading.skips.items():
        row[f"skips_{kind}"] = skips
        row[f"chance_skips_{kind}"] = mean_skips(space, kind)
        row[f"entropy_{kind}"] = reading.entropy[kind]
    return row


def undetermined_kinds(module: SearchModule) -> list[str]:
    """Kinds of cell that no loss in use depends on: none of theirs comes before the last tap."""
    used = {cell.spec.kind for cell in module.supernet.backbone.cells}  # type: ignore[union-attr]
    return [kind for kind in module.relaxation.alphas if kind not in used]
