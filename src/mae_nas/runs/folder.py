"""The run folder: what it holds, who holds it, and the configuration it stands for."""

import contextlib
import fcntl
import itertools
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from mae_nas.keys import find
from mae_nas.runs.files import read_json, sweep, write_json

FORMAT = "mae_nas.config/1"
_LOCK = "run.lock"
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
        self._lock: IO[str] | None = None
        self._made: list[Path] = []  # folders that `new` made, innermost first
        self._is_new = False

    @classmethod
    def new(cls, path: Path, exact: bool) -> "RunFolder":
        """Make and lock the folder of a run that begins.

        Args:
            path: of the folder.
            exact: whether the user chose it; else a taken name gets a number, so that two runs
                started in the same second do not meet.
        """
        for number in itertools.count(1):
            folder = cls(path if number == 1 else path.with_name(f"{path.name}-{number}"))
            parents = (folder.path, *folder.path.parents)
            folder._made = [parent for parent in parents if not parent.exists()]
            try:
                folder.path.mkdir(parents=True, exist_ok=exact)
            except FileExistsError:
                if exact:
                    raise
                continue
            folder._is_new = True
            folder.lock()
            try:
                folder.refuse_unless_empty()  # again: someone may have been faster
            except ValueError:
                folder.release()
                raise
            sweep(folder.path)
            return folder
        raise AssertionError("unreachable")

    @property
    def config(self) -> Path:
        """The configuration and the overrides that it came from, written first."""
        return self.path / "config.json"

    @property
    def genotype(self) -> Path:
        """The last reading's genotype."""
        return self.path / "genotype.json"

    @property
    def genotypes(self) -> Path:
        """Every reading, a line each."""
        return self.path / "genotypes.jsonl"

    @property
    def metrics(self) -> Path:
        """Losses and α statistics, a row every `trainer.log_every` steps."""
        return self.path / "metrics.csv"

    @property
    def summary(self) -> Path:
        """The run's record, written when it ends."""
        return self.path / "summary.json"

    @property
    def log(self) -> Path:
        """What the terminal showed, with times."""
        return self.path / "train.log"

    @property
    def plots(self) -> Path:
        """Pictures."""
        return self.path / "plots"

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.path / "checkpoints" / "last.ckpt"

    def contents(self) -> list[str]:
        """Names in the folder, except a lock and half-written files that a kill left behind."""
        if not self.path.exists():
            return []
        names = (entry.name for entry in self.path.iterdir())
        return sorted(name for name in names if name != _LOCK and ".tmp-" not in name)

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
        contents = self.contents()
        if contents:
            raise ValueError(
                f"{self.path} is not empty ({contents[0]}, …) and not a run; "
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
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        except OSError:
            file.close()
            raise
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._lock = file
        _HELD.add(file)
        return True

    def release(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            _HELD.discard(self._lock)
            self._lock.close()
            self._lock = None

    def write_config(self, config: Mapping[str, object], overrides: Sequence[str]) -> None:
        """Store what the run is; the first file of a run."""
        stored = {"format": FORMAT, "config": config, "overrides": list(overrides)}
        write_json(self.config, stored)

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
        results = (self.genotype, self.genotypes, self.metrics, self.summary, self.checkpoint)
        if not self._is_new or any(result.exists() for result in results):
            return False
        sweep(self.path)
        for file in (self.config, self.log, self.path / _LOCK):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoint.parent, self.plots, *self._made):
            with contextlib.suppress(OSError):  # absent, or someone else's files are in it
                folder.rmdir()
        self.release()
        return True
