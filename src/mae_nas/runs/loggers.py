"""Where a run is watched from, beside its folder: nowhere, Weights & Biases, or TensorBoard.

A `logger` node of the configuration is settings; its `start` gives the log that callbacks write to.
Neither wandb nor tensorboard is imported unless it is used: they take seconds.
"""

import json
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
from PIL import Image

from mae_nas.checks import Checked, first_line
from mae_nas.keys import find
from mae_nas.runs.files import read_json, write_json
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.listing import command_of
from mae_nas.search.reading import EdgeRow
from mae_nas.stepping import Reading

if TYPE_CHECKING:
    import wandb
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("mae_nas")

Row = Mapping[str, float | str]

ANSWER_SECONDS = 5
START_SECONDS = 30
UPLOAD_SECONDS = 300


class RunLog:
    """What a run tells of itself, on the first rank only; this log keeps none of it."""

    def row(self, values: Row) -> None:
        """A row of metrics.csv or the values of a reading, `step` among them; absent ones NaN."""

    def drawn(self, reading: Reading, edges: Sequence[EdgeRow], plots: Path) -> None:
        """The pictures in `plots` have been drawn anew, from this and all earlier readings."""

    def close(self, record: Mapping[str, Any], code: int) -> None:
        """The run ends with this exit code; `record` is summary.json, empty if none was written."""


class LoggerSettings:
    """What a `logger` node builds; this one adds nothing to the run folder."""

    def start(
        self, folder: RunFolder, config: Mapping[str, Any], step: int, earlier: Sequence[Row]
    ) -> RunLog:
        """The log of a run about to train; an exception refuses the run.

        Args:
            folder: of the run, by whose name it is shown.
            config: all of it.
            step: that it goes on from; 0 for a new one.
            earlier: the rows up to there, in order.
        """
        del folder, config, step, earlier
        return RunLog()


class Guarded(RunLog):
    """Another log, whose failure is one warning and the end of that log, not of the search."""

    def __init__(self, inner: RunLog) -> None:
        self._inner = inner

    def row(self, values: Row) -> None:
        self._attempt(lambda: self._inner.row(values))

    def drawn(self, reading: Reading, edges: Sequence[EdgeRow], plots: Path) -> None:
        self._attempt(lambda: self._inner.drawn(reading, edges, plots))

    def close(self, record: Mapping[str, Any], code: int) -> None:
        self._attempt(lambda: self._inner.close(record, code))

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever a logger may raise
            broken, self._inner = self._inner, RunLog()
            name = type(broken).__name__
            log.warning("%s failed (%s); the run goes on without it", name, first_line(error))
            with suppress(Exception):
                broken.close({}, 1)


def start_log(
    settings: LoggerSettings,
    folder: RunFolder,
    config: Mapping[str, Any],
    step: int,
    earlier: Sequence[Row],
) -> RunLog:
    """The log that `settings` start, guarded; ValueError in one line if they cannot."""
    try:
        return Guarded(settings.start(folder, config, step, earlier))
    except Exception as error:
        raise ValueError(f"logger: {first_line(error)}") from error


@dataclass(frozen=True)
class WandbSettings(LoggerSettings, Checked):
    """Weights & Biases shows the run, under one id however often it is resumed.

    Runs of a sweep are grouped by the environment variable WANDB_RUN_GROUP.

    Args:
        project: its name there.
        mode: `offline` writes to the run folder, for `wandb sync`; `online` needs `wandb login`;
            `disabled` is no logger at all.
    """

    project: str = "mae-nas"
    mode: Literal["offline", "online", "disabled"] = "offline"

    def _problems(self) -> Iterator[str]:
        if self.mode == "online" and (obstacle := _obstacle()):
            yield obstacle

    def start(
        self, folder: RunFolder, config: Mapping[str, Any], step: int, earlier: Sequence[Row]
    ) -> RunLog:
        if self.mode == "disabled":
            return super().start(folder, config, step, earlier)
        import wandb

        identity, told = _known_run(folder.wandb)
        # Tables and artifacts of an offline run would wait for their upload in the home directory.
        os.environ["WANDB_DATA_DIR"] = str(folder.path.absolute() / "wandb")
        run = wandb.init(
            project=self.project,
            mode=self.mode,
            id=identity,
            resume="allow",
            name=folder.path.resolve().name,
            job_type=command_of(config),
            config=dict(config),
            dir=folder.path,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",  # train.log has what was said
                init_timeout=START_SECONDS,
                finish_timeout=UPLOAD_SECONDS,
            ),
        )
        write_json(folder.wandb, {"id": run.id, "told": told})
        if not run.offline:
            log.info("wandb      %s", run.url)
        run_log = WandbLog(run, folder, told)
        for row in earlier:
            if float(row["step"]) > told:  # in a file that a killed process did not finish
                run_log.row(row)
        return run_log


def _known_run(file: Path) -> tuple[str | None, float]:
    """Its id, None for a new one, and the last step that it was told."""
    if file.exists():
        with suppress(ValueError):
            known = read_json(file)
            identity, told = find(known, "id"), find(known, "told")
            if isinstance(identity, str) and isinstance(told, int | float) and told >= 0:
                return identity, told
        log.warning("%s is damaged; wandb shows the run anew, under another id", file)
    return None, 0


@cache  # settings are made twice, to be judged and to be used
def _obstacle() -> str:
    """Why nothing could be sent: asked first, since `wandb.init` waits a minute for an answer."""
    import wandb

    server = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    instead = "or use logger.mode=offline, and `wandb sync` later"
    try:
        if not wandb.login(prompt=False, verify=False):
            return f"mode online: no key for {server}; run `wandb login` first, {instead}"
        urlopen(server, timeout=ANSWER_SECONDS).close()
    except HTTPError:
        pass  # an answer
    except (OSError, wandb.Error) as error:
        return f"mode online: {server} cannot be used ({first_line(error)}); mend that, {instead}"
    return ""


class WandbLog(RunLog):
    """A run of Weights & Biases. Its axis is our `step`: wandb's own never goes back on resume."""

    def __init__(self, run: "wandb.Run", folder: RunFolder, told: float) -> None:
        self._run = run
        self._folder = folder
        self._told = told  # the last step of all rows
        run.define_metric("step")
        run.define_metric("*", step_metric="step")

    def row(self, values: Row) -> None:
        self._run.log({name: value for name, value in values.items() if value == value})
        self._told = values["step"]

    def drawn(self, reading: Reading, edges: Sequence[EdgeRow], plots: Path) -> None:
        import wandb

        media: dict[str, Any] = {path.stem: wandb.Image(str(path)) for path in _pictures(plots)}
        for kind, scores in reading.mixing().items():
            media[f"alpha_{kind}"] = wandb.Histogram(np.ravel(scores).tolist())
        media["genotype"] = wandb.Table(columns=list(EdgeRow._fields), data=list(map(list, edges)))
        self._run.log({"step": reading.step, **media})

    def close(self, record: Mapping[str, Any], code: int) -> None:
        import wandb

        try:
            kept = ("state", "wall_seconds", "beats_yardsticks")  # beside the last of each metric
            self._run.summary.update({name: record[name] for name in kept if name in record})
            if self._folder.genotype.exists():
                artifact = wandb.Artifact(f"genotype-{self._run.id}", type="genotype")
                artifact.add_file(str(self._folder.genotype))
                self._run.log_artifact(artifact)
            self._run.finish(exit_code=code)
            write_json(self._folder.wandb, {"id": self._run.id, "told": self._told})
        finally:
            wandb.teardown(code)  # at exit it would show a traceback if its process had died
        if self._run.offline:
            parts = f"{shlex.quote(str(self._folder.path))}/wandb/offline-run-*"
            log.info("wandb      to upload the run: wandb sync %s", parts)


@dataclass(frozen=True)
class TensorboardSettings(LoggerSettings):
    """TensorBoard shows the run, from the folder `tensorboard` in the run folder."""

    def start(
        self, folder: RunFolder, config: Mapping[str, Any], step: int, earlier: Sequence[Row]
    ) -> RunLog:
        del earlier  # they are in the files of earlier processes
        from torch.utils.tensorboard import SummaryWriter

        place = folder.path / "tensorboard"
        log.info("tensorboard --logdir %s", shlex.quote(str(place)))
        # What a killed process wrote behind its checkpoint is not shown.
        writer = SummaryWriter(place, purge_step=step + 1)
        writer.add_text("config", f"```\n{json.dumps(config, indent=2)}\n```", step)
        return TensorboardLog(writer)


class TensorboardLog(RunLog):
    """An event file of TensorBoard."""

    def __init__(self, writer: "SummaryWriter") -> None:
        self._writer = writer

    def row(self, values: Row) -> None:
        for name, value in values.items():
            add = self._writer.add_text if isinstance(value, str) else self._writer.add_scalar
            if name != "step" and value == value:
                add(name, value, values["step"])
        self._writer.flush()  # else a kill would lose two minutes, checkpoints in between or not

    def drawn(self, reading: Reading, edges: Sequence[EdgeRow], plots: Path) -> None:
        for path in _pictures(plots):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self._writer.add_image(path.stem, pixels, reading.step, dataformats="HWC")
        for kind, scores in reading.mixing().items():
            self._writer.add_histogram(f"alpha_{kind}", np.ravel(scores), reading.step)
        rows = [" | ".join(EdgeRow._fields), "|".join("-" * len(EdgeRow._fields))]
        rows += [" | ".join(map(str, edge)) for edge in edges]
        self._writer.add_text("genotype", "\n".join(rows), reading.step)

    def close(self, record: Mapping[str, Any], code: int) -> None:
        del record, code
        self._writer.close()


def _pictures(plots: Path) -> list[Path]:
    return sorted(plots.glob("*.png"))
