"""Stem, plan of cells and channel book-keeping, for any kind of cell.

The supernet and the found network are the same macro-architecture (DARTS, Sec. 3.1): a stem, then
cells that each see the outputs of the two before, reduction cells at one and two thirds of the
depth. What a cell is, its maker decides; states pass between cells unopened.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import Tensor, nn

from mae_nas.checks import raise_all
from mae_nas.masking import BatchNorm, VisibleMap

StemName = Literal["cifar", "small", "imagenet"]
CELL_KINDS = ("normal", "reduce")
ALL_NODES: Mapping[str, int] = MappingProxyType(dict.fromkeys(CELL_KINDS, 4))
"""What the outputs of DARTS's cells concatenate."""


@dataclass(frozen=True, slots=True)
class FeatureInfo:
    """A feature map the encoder offers: channels, and stride in pixels per cell side."""

    channels: int
    stride: int


@dataclass(frozen=True, slots=True)
class CellSpec:
    """All that a cell needs to know of its place.

    Args:
        kind: `normal` or `reduce` (stride 2, width doubled).
        width: channels of each node.
        inputs: the two states it receives: output of the cell before the last, and of the last.
    """

    kind: str
    width: int
    inputs: tuple[FeatureInfo, FeatureInfo]

    @property
    def is_reduction(self) -> bool:
        return self.kind == "reduce"

    @property
    def stride_in(self) -> int:
        """Pixels per cell side of the input nodes (the first input is brought to the second's)."""
        return self.inputs[1].stride

    @property
    def stride_out(self) -> int:
        """Pixels per cell side of the other nodes."""
        return self.stride_in * (2 if self.is_reduction else 1)


@dataclass(frozen=True, slots=True)
class BackbonePlan:
    """A backbone's cells, their outputs, and the taps F_1, F_2, F_3: the last of each stage."""

    stem: StemName
    width: int
    cells: tuple[CellSpec, ...]
    taps: tuple[int, ...]
    outputs: tuple[FeatureInfo, ...]

    @property
    def features(self) -> tuple[FeatureInfo, ...]:
        """Of F_1, F_2, F_3."""
        return tuple(self.outputs[tap] for tap in self.taps)

    def up_to(self, stages: int) -> tuple[CellSpec, ...]:
        """The cells that the first `stages` taps depend on."""
        return self.cells[: self.taps[stages - 1] + 1]


def stem_for(side: int) -> StemName:
    """The stem for images of `side` pixels. Not stated in the paper; DARTS has the outer two."""
    if side <= 48:
        return "cifar"
    return "small" if side <= 128 else "imagenet"


def plan_backbone(
    width: int, depth: int, stem: StemName, concatenated: Mapping[str, int] = ALL_NODES
) -> BackbonePlan:
    """Book-keeping of channels and strides (DARTS, Sec. 3.1).

    Args:
        width: channels of a node in the first stage; even, since reductions halve it.
        depth: number of cells, at least 3, so that each stage has one.
        stem: see `Stem`.
        concatenated: nodes that the output of a cell of each kind concatenates.
    """
    shallow = f"depth {depth}: at least 3 cells are needed, one for each resolution"
    uneven = f"width {width}: must be even, at least 2, e.g. {max(2, width + 1)}"
    raise_all([shallow] * (depth < 3) + [uneven] * (width < 2 or width % 2 != 0))
    before_last, last = Stem.outputs(stem, width)
    reductions = (depth // 3, 2 * depth // 3)
    cells: list[CellSpec] = []
    outputs: list[FeatureInfo] = []
    for index in range(depth):
        kind = "reduce" if index in reductions else "normal"
        width_here = width * 2 ** sum(index >= r for r in reductions)
        spec = CellSpec(kind, width_here, (before_last, last))
        cells.append(spec)
        before_last, last = last, FeatureInfo(concatenated[kind] * width_here, spec.stride_out)
        outputs.append(last)
    taps = (reductions[0] - 1, reductions[1] - 1, depth - 1)
    return BackbonePlan(stem, width, tuple(cells), taps, tuple(outputs))


def check_side(side: int, stride: int) -> None:
    """ValueError unless images of `side` pixels divide into cells of the coarsest `stride`."""
    if side % stride:
        below = side // stride * stride
        near = [s for s in (below, below + stride) if s > 0]
        raise ValueError(
            f"side {side} is not a multiple of {stride}, the stride of the coarsest features; "
            f"nearest sides that are: {', '.join(map(str, near))}"
        )


class Stem(nn.Module):
    """Images to the first two states.

    `cifar`: conv 3×3 to 3·width channels, BatchNorm; both states are its output (stride 1).
    `small`: the same with stride 2.
    `imagenet`: three convolutions of stride 2; the states are the outputs of the second and third.

    Shapes:
        image: (B, C, H, W)  ->  two dense maps, sizes and channels as `Stem.outputs` says.
    """

    def __init__(self, name: StemName, channels: int, width: int) -> None:
        super().__init__()
        self.is_deep = name == "imagenet"
        if self.is_deep:
            self.conv0 = nn.Conv2d(channels, width // 2, 3, 2, padding=1, bias=False)
            self.norm0 = BatchNorm(width // 2)
            self.conv1 = nn.Conv2d(width // 2, width, 3, 2, padding=1, bias=False)
            self.norm1 = BatchNorm(width)
            self.conv2 = nn.Conv2d(width, width, 3, 2, padding=1, bias=False)
            self.norm2 = BatchNorm(width)
        else:
            self.stride = 1 if name == "cifar" else 2
            self.conv0 = nn.Conv2d(channels, 3 * width, 3, self.stride, padding=1, bias=False)
            self.norm0 = BatchNorm(3 * width)

    @staticmethod
    def outputs(name: StemName, width: int) -> tuple[FeatureInfo, FeatureInfo]:
        """Channels and strides of the two states."""
        if name == "imagenet":
            return FeatureInfo(width, 4), FeatureInfo(width, 8)
        both = FeatureInfo(3 * width, 1 if name == "cifar" else 2)
        return both, both

    def forward(self, image: Tensor, visible: VisibleMap | None) -> tuple[Tensor, Tensor]:
        def seen(stride: int) -> Tensor | None:
            return visible.at(stride) if visible is not None else None

        if not self.is_deep:
            state = self.norm0(self.conv0(image), seen(self.stride))
            return state, state
        x = self.norm0(self.conv0(image), seen(2)).relu()
        before_last = self.norm1(self.conv1(x), seen(4))
        last = self.norm2(self.conv2(before_last.relu()), seen(8))
        return before_last, last


class CellState(ABC):
    """What one cell hands to the next; only cells of the same family look inside."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The state as one map (B, C, H, W), 0 at hidden sites under sparse masking."""


@dataclass(frozen=True, slots=True)
class DenseState(CellState):
    """One map (B, C, H, W)."""

    features: Tensor

    def dense(self) -> Tensor:
        return self.features


class Backbone(nn.Module):
    """A stem and the cells of a plan, up to the last tap that is used.

    Args:
        plan: see `plan_backbone`.
        channels: of the image.
        stages: how many taps are wanted, counted from the finest; later cells are not built, so
            that no weight goes without a gradient.
        make_cell: builds the cell for a place.
    """

    def __init__(
        self,
        plan: BackbonePlan,
        channels: int,
        stages: int,
        make_cell: Callable[[CellSpec], nn.Module],
    ) -> None:
        super().__init__()
        self.stem = Stem(plan.stem, channels, plan.width)
        self.cells = nn.ModuleList(make_cell(spec) for spec in plan.up_to(stages))
        self.taps = plan.taps[:stages]

    def run(
        self,
        states: Iterable[CellState],
        step: Callable[[nn.Module, CellState, CellState], CellState],
    ) -> Sequence[Tensor]:
        """The maps at the taps, given the stem's two states and how to run one cell."""
        before_last, last = states
        tapped = []
        for index, cell in enumerate(self.cells):
            before_last, last = last, step(cell, before_last, last)
            if index in self.taps:
                tapped.append(last.dense())
        return tapped
