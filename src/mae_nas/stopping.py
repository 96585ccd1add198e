"""How a run is told to stop, at any moment of its life; knows no torch."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger("mae_nas")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, a scheduler's, and those that SLURM (--signal=USR1@120) and submitit warn with."""


class Stopper:
    """The first signal ends a search after the step in progress, a second one at once.

    At once means a KeyboardInterrupt; so does the first one where no step is in progress.
    """

    def __init__(self) -> None:
        self.received = 0  # the last signal
        self.is_patient = False  # whether steps are in progress, of which each looks at `received`

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals come here inside; the handlers of before are put back."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        is_second, self.received = self.received > 0, number
        if is_second or not self.is_patient:
            raise KeyboardInterrupt
        log.info("Stopping after this step and a last reading (again to stop at once)")
