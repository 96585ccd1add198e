"""`mae-nas pretrain`: what the masked pretraining of a network builds, reads, draws and records."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.optim import Optimizer

from mae_nas.backbone import FeatureInfo, check_side
from mae_nas.checks import raise_all
from mae_nas.cli.assemble import (
    Maker,
    assemble_masked,
    batch_problems,
    common_parts,
    load,
    ready,
)
from mae_nas.cli.build import build
from mae_nas.cli.check import Layout, Root
from mae_nas.cli.masked import MaskedRun, yardsticks_of
from mae_nas.cli.run import Config
from mae_nas.data import ImageSource, UnlabelledData
from mae_nas.data.stream import Preprocessing
from mae_nas.decoders import Decoder
from mae_nas.masking import Masking
from mae_nas.network import NetworkSize
from mae_nas.network.complexity import Complexity, Place, complexity_of
from mae_nas.network.encoder import Encoder
from mae_nas.network.peers import TimmEncoder
from mae_nas.network.pretraining import (
    PretrainModule,
    PretrainReading,
    PretrainSettings,
    take_pretrain_reading,
)
from mae_nas.network.stored import identity
from mae_nas.objectives import Objective
from mae_nas.runs.files import write_json
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.loggers import LoggerSettings, RunLog
from mae_nas.runs.pictures import draw_masked
from mae_nas.runs.trainer import NetworkEfficiency, TrainerSettings
from mae_nas.spaces import S0
from mae_nas.spaces.derivation import named_genotype

log = logging.getLogger("mae_nas")

_WHOLE = 3  # stages: what lies behind the last tap would not be trained


@dataclass(frozen=True, kw_only=True)
class PretrainRoot(Root):
    """The keys of a pretraining that belong to no section."""

    genotype: str | None  # `random:SEED` is of S0
    model: str | None

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if (self.genotype is None) == (self.model is None):
            yield "genotype: give it, or model=TIMM_NAME, and not both; e.g. genotype=DARTS_V2"
        elif self.genotype is not None:
            try:
                named_genotype(self.genotype, S0())
            except (ValueError, OSError) as error:
                yield str(error)


@dataclass(frozen=True, kw_only=True)
class PretrainRun(MaskedRun[PretrainReading]):
    """A pretraining about to start or to go on."""

    module: PretrainModule

    what = "pretraining"
    reading = PretrainReading

    @property
    def every(self) -> Path:
        return self.folder.readings

    @property
    def smaller(self) -> str:
        size = self.config["network"]["width"]
        return "a smaller model" if self.config["model"] else f"lower network.width than {size}"

    @property
    def identity(self) -> Mapping[str, str]:
        return identity(self.module.network, Preprocessing.of(self.data.store))

    def images(self, steps: int) -> float:
        return self.data.batch_size * steps

    @property
    def costs(self) -> Complexity:
        """Of the network, decoder apart."""
        make = partial(make_network, self.config, self.data.channels, self.data.side)
        return complexity_of(make, self.data.channels, self.data.side)

    def announce(self) -> None:
        costs = self.costs
        name = self.config["model"] or "a network of width {width} and {depth} cells".format(
            **self.config["network"]
        )
        super().announce()
        said = "%s: %.2f M parameters, %.1f M multiply-adds"
        log.info(said, name, costs.params / 1e6, costs.macs / 1e6)

    def take(
        self,
        earlier: Sequence[PretrainReading],  # noqa: ARG002 - no verdict on those before
    ) -> PretrainReading:
        return take_pretrain_reading(self.module, self.data.held_out_batches())

    def values(self, reading: PretrainReading) -> dict[str, float | str]:
        return {"step": reading.step, "held_out_loss": reading.held_out_loss}

    def status(self, row: Mapping[str, float], readings: Sequence[PretrainReading]) -> str:
        held_out = f"  held out {readings[-1].held_out_loss:.3f}" if readings else ""
        return f"loss {row['weight_loss']:.3f}{held_out}"

    def draw(self, readings: Sequence[PretrainReading], run_log: RunLog) -> None:
        if self.config["genotype"]:
            genotype = named_genotype(self.config["genotype"], S0())
            write_json(self.folder.genotype, genotype.to_dict())
        rows = [reading.to_dict() for reading in readings]
        draw_masked(self.folder, self.module, self.data, self.yardsticks, rows)
        run_log.drawn(readings[-1], [], self.folder.plots)

    def record(self, readings: Sequence[PretrainReading]) -> dict[str, object]:
        return {
            **super().record(readings),
            "final": readings[-1].to_dict(),
            "readings": len(readings),
            "costs": asdict(self.costs),
        }

    def close(self, record: Mapping[str, Any], readings: Sequence[PretrainReading]) -> None:
        super().close(record, readings)
        log.info("network    %s", self.folder.checkpoint)
        log.info("pictures   %s: losses.png, reconstructions.png", self.folder.plots)
        log.info("features   mae-nas embed checkpoint=%s output=features.npz", self.folder.path)


def make_network(config: Config, channels: int, side: int) -> Encoder:
    """The network that the configuration names, without a classifier."""
    if config["model"]:
        return TimmEncoder(config["model"], channels)
    size = build(NetworkSize, config["network"], {}, "network")
    return Place(size, channels, side, 0).network(named_genotype(config["genotype"], S0()))


def judge(config: Config, broken: Collection[str]) -> list[str]:
    """What constructors refuse and what does not fit together, before any data is read.

    Args:
        config: composed, its names and types checked.
        broken: sections that were found wrong already.
    """
    maker = Maker(config, set(broken))
    source, settings = maker.common(NetworkEfficiency)
    maker.make(NetworkSize, "network")
    maker.optimizer("pretraining.optimizer")
    maker.make(PretrainSettings, "pretraining")
    side = None if source is None else source.known_side()
    channels = (source and source.known_channels()) or 1
    assemble(maker, side, channels)
    return [*maker.problems, *batch_problems(config, source, settings)]


LAYOUT = Layout(
    {
        "data": ImageSource,
        "network": NetworkSize,
        "objective": Objective,
        "decoder": Decoder,
        "mask": Masking,
        "pretraining": PretrainSettings,
        "trainer": TrainerSettings,
        "logger": LoggerSettings,
        "efficiency": NetworkEfficiency,
    },
    {"pretraining.optimizer": Optimizer},
    PretrainRoot,
    judge,
)


def assemble(maker: Maker, side: int | None, channels: int) -> tuple[Masking, Objective] | None:
    """Masking and objective, or None if anything is wrong: `maker.problems` says what.

    Args:
        maker: of the sections.
        side: of the images, pixels; None if it is not known yet.
        channels: of the images.
    """
    maker.facts |= {"channels": channels, "side": side}
    features = None
    if not {"", "network"} & maker.broken:
        key = "model" if maker.config["model"] else "network"
        features = maker.hold(key, lambda: _features(maker.config, channels, side))
    masked = assemble_masked(maker, features)
    if maker.config["mask"].get("mode") == "sparse":
        maker.problems.append("mask.mode: must be dense here; sparse is of the supernet")
    if masked is not None and masked[1].stages < _WHOLE:
        maker.problems.append(
            f"decoder.taps: must have {_WHOLE} among them, or the last cells would learn nothing"
        )
    return masked


def _features(config: Config, channels: int, side: int | None) -> Sequence[FeatureInfo]:
    """Of the network, made without storage; ValueError if it cannot be, or not for `side`."""
    with torch.device("meta"):
        network = make_network(config, channels, side or 32)
    features = network.feature_info
    if side is not None:
        check_side(side, features[-1].stride)
    return features


def prepare(config: Config, folder: RunFolder, console: Console) -> PretrainRun:
    """Build everything from a checked configuration; read the data."""
    settings, efficiency, source = common_parts(config, NetworkEfficiency)
    data = UnlabelledData(
        source,
        config["seed"],
        source.batch_size,
        settings.accumulate,
        efficiency.workers,
        efficiency.resident,
    )
    load(data, config, console)
    maker = Maker(config)
    masked = assemble(maker, data.side, data.channels)
    raise_all(maker.problems)
    assert masked is not None  # or something would be wrong
    masking, objective = masked
    module = PretrainModule(
        make_network(config, data.channels, data.side),
        objective,
        build(PretrainSettings, config["pretraining"], {}, "pretraining"),
        settings.epochs(data.steps_per_epoch),
        data.steps_per_epoch,
        source.batch_size,
        efficiency.compile,
    )
    last_step = ready(module, settings)
    return PretrainRun(
        config=config,
        folder=folder,
        settings=settings,
        data=data,
        masking=masking,
        module=module,
        yardsticks=yardsticks_of(objective, data),
        last_step=last_step,
    )
