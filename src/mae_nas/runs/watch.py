"""What the first rank does about the others that it has launched: none dies, or lives, alone."""

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

log = logging.getLogger("mae_nas")

GRACE = 20.0


class RankWatch(pl.Callback):
    """Ends the search with exit code 1 when a rank of this node has died.

    gloo tells the survivors, and the search ends in order; NCCL lets them wait for ever, and this
    process then ends where it stands. Lightning's own watch kills it before it can say anything.
    """

    def __init__(self, record: Callable[[str], None], grace: float = GRACE) -> None:
        self.record = record  # writes why the search failed
        self.grace = grace  # seconds for the search to end by itself
        self.ranks: list[subprocess.Popen[bytes]] = []

    def follow(self, trainer: pl.Trainer) -> None:
        """Take over the ranks that `trainer` is about to launch: one may die before they meet."""
        if (launcher := trainer.strategy.launcher) is not None:
            others = trainer.num_devices - 1
            threading.Thread(target=self._watch, args=(launcher, others), daemon=True).start()

    def on_exception(self, _trainer: object, _module: object, exception: BaseException) -> None:
        """The search ends here: so do the other ranks, once they have said why."""
        until = time.monotonic() + (0 if isinstance(exception, KeyboardInterrupt) else self.grace)
        while time.monotonic() < until and any(rank.poll() is None for rank in self.ranks):
            time.sleep(0.1)
        self._kill()

    def _watch(self, launcher: Any, others: int) -> None:  # noqa: ANN401 - not public
        while len(launcher.procs) < others:
            time.sleep(0.1)
        self.ranks = list(launcher.procs)
        launcher.procs.clear()  # Lightning's watch finds that all has ended, and ends
        while not any(rank.poll() for rank in self.ranks):
            if all(rank.poll() == 0 for rank in self.ranks):
                return
            time.sleep(0.5)
        main = threading.main_thread()
        main.join(self.grace)
        if main.is_alive():
            codes = ", ".join(f"process {r.pid} with {r.poll()}" for r in self.ranks if r.poll())
            line = f"another rank has ended, and with it the search: {codes}"
            log.error("%s", line)
            self._kill()
            self.record(line)
            os._exit(1)

    def _kill(self) -> None:
        for rank in self.ranks:
            rank.kill()
