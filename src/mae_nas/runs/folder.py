"""The run folder: what it holds, who holds it, and the configuration it stands for."""

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from mae_nas.keys import find
from mae_nas.runs.files import read_json, remove_unfinished, write_json

FORMAT = "mae_nas.config/1"
_LOCK = "run.lock"
_TRIES, _TRY_SECONDS = 20, 0.005  # `is_held` keeps a lock for less
_HELD: set[IO[str]] = set()  # open locks of this process


def _close_locks() -> None:
    # A forked loader worker would otherwise keep the folder locked after its parent was killed.
    for file in _HELD:
        file.close()
    _HELD.clear()


os.register_at_fork(after_in_child=_close_locks)


class RunFolder:
    """Paths of one run, its lock, and its stored configuration. Only we write here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"  # and the overrides it came from; written first
        self.genotype = path / "genotype.json"  # of the last reading
        self.genotypes = path / "genotypes.jsonl"  # of every reading, a line each
        self.readings = path / "readings.jsonl"  # of a training, a line each
        self.metrics = path / "metrics.csv"  # losses and α statistics
        self.summary = path / "summary.json"  # the record, written when the run ends
        self.log = path / "train.log"  # what the terminal showed, with times
        self.wandb = path / "wandb.json"  # which run of W&B this is
        self.plots = path / "plots"
        self.checkpoint = path / "checkpoints" / "last.ckpt"
        self._lock: IO[str] | None = None
        self._made: list[Path] | None = None  # folders that `new` made, innermost first

    @classmethod
    def new(cls, path: Path, exact: bool) -> "RunFolder":
        """Make and lock the folder of a run that begins.

        Args:
            path: of the folder.
            exact: whether the user chose it; else a taken name gets a number, so that two runs
                started in the same second do not meet.
        """
        folder = cls(path)
        for number in itertools.count(2):
            parents = (folder.path, *folder.path.parents)
            folder._made = [parent for parent in parents if not parent.exists()]
            try:
                folder.path.mkdir(parents=True, exist_ok=exact)
                break
            except FileExistsError:
                if exact:
                    raise
            folder = cls(path.with_name(f"{path.name}-{number}"))
        folder.lock()
        try:
            folder.refuse_unless_empty()  # again: someone may have been faster
        except ValueError:
            folder.release()
            raise
        remove_unfinished(folder.path)
        return folder

    def is_run(self) -> bool:
        """Whether a run lives here (or lived, and left a checkpoint)."""
        return self.config.exists() or self.checkpoint.parent.exists()

    def refuse_unless_empty(self) -> None:
        """Raise one line unless a new run may begin here."""
        if self.is_run():
            raise ValueError(
                f"{self.path} already holds a run; continue it with resume=auto "
                "or choose another hydra.run.dir"
            )
        for entry in self.path.iterdir() if self.path.exists() else ():
            if entry.name != _LOCK and ".tmp-" not in entry.name:  # what a kill leaves behind
                raise ValueError(
                    f"{self.path} is not empty ({entry.name}, …) and not a run; "
                    "choose another hydra.run.dir"
                )

    def lock(self) -> None:
        """Hold the folder until this process ends, however it ends (kernel lock on run.lock)."""
        if self._lock is None and not self.try_lock():
            holder = (self.path / _LOCK).read_text(encoding="utf-8").strip()
            raise ValueError(f"{self.path} is in use by {holder or 'another process'}")

    def try_lock(self) -> bool:
        """Like `lock`, but say whether it worked."""
        file = (self.path / _LOCK).open("a+", encoding="utf-8")
        for _ in range(_TRIES):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(_TRY_SECONDS)
        else:
            file.close()
            return False
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._lock = file
        _HELD.add(file)
        return True

    def is_held(self) -> bool:
        """Whether a living process holds the folder; nothing is written."""
        try:
            with (self.path / _LOCK).open(encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def signal(self, number: int) -> bool:
        """Send a signal to the process that holds the folder, if there is one on this computer."""
        if not self.is_held():
            return False
        holder = (self.path / _LOCK).read_text(encoding="utf-8")
        found = re.fullmatch(rf"pid (\d+) on {re.escape(socket.gethostname())}\n", holder)
        try:
            os.kill(int(found[1]), number) if found else None
        except ProcessLookupError:  # it has just ended
            return False
        return found is not None

    def release(self) -> None:
        if self._lock is not None:
            _HELD.discard(self._lock)
            self._lock.close()
            self._lock = None

    def write_config(self, config: Mapping[str, object], overrides: Sequence[str]) -> None:
        """Store what the run is; the first file of a run."""
        write_json(self.config, {"format": FORMAT, "config": config, "overrides": list(overrides)})

    def read_config(self) -> dict[str, object]:
        """The stored configuration: data, not to be trusted."""
        if not self.config.is_file():
            raise ValueError(f"{self.path} is not a run folder (it has no config.json)")
        stored = read_json(self.config)
        config = find(stored, "config")
        if not isinstance(config, dict) or find(stored, "format") != FORMAT:
            raise ValueError(f"{self.config} is not a configuration of mae-nas ({FORMAT})")
        return config

    def discard(self) -> bool:
        """Take back a folder of `new` in which no result was written; say whether it was.

        Called when a run is refused after its folder was made, so that nothing is left behind.
        """
        results = (self.genotype, self.genotypes, self.readings, self.metrics, self.checkpoint)
        if self._made is None or any(result.exists() for result in results):
            return False
        remove_unfinished(self.path)
        for file in (self.config, self.log, self.summary, self.wandb, self.path / _LOCK):
            file.unlink(missing_ok=True)
        for name in ("wandb", "tensorboard"):  # of a login that was refused, or of a run that was
            shutil.rmtree(self.path / name, ignore_errors=True)
        for folder in (self.checkpoint.parent, self.plots, *self._made):
            with contextlib.suppress(OSError):  # absent, or someone else's files are in it
                folder.rmdir()
        self.release()
        return True
