"""How a run is told to stop, at any moment of its life; knows no torch."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger("mae_nas")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, a scheduler's, and those that SLURM (--signal=USR1@120) and submitit warn with."""


GRACE = 5.0
"""Seconds for Python to act on a signal: a rank that waits in C++ for the others never does."""


class Stopper:
    """The first signal ends a search after the step in progress, a second one at once.

    At once means a KeyboardInterrupt; so does the first one where no step is in progress.
    """

    def __init__(self) -> None:
        self.received = 0  # the last signal
        self.is_patient = False  # whether steps are in progress, of which each looks at `received`
        self._obeyed = threading.Event()

    @contextmanager
    def listening(self, code: Callable[[int], int]) -> Iterator[None]:
        """Signals come here inside; the handlers of before are put back.

        Args:
            code: the exit code by signal, of a process that can only be ended where it stands.
        """
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        ear, mouth = os.pipe()
        os.set_blocking(mouth, False)
        wakeup = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
        watch = threading.Thread(target=self._watch, args=(ear, code), daemon=True)
        watch.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            os.write(mouth, bytes(1))  # rather than its end, which forked loader workers hold too
            watch.join()
            os.close(mouth)
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._receive)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # our parent may have blocked them

    def _watch(self, ear: int, code: Callable[[int], int]) -> None:
        """Say that a signal has come, and end the process that should end at once and cannot."""
        is_second = False
        while number := os.read(ear, 1)[0]:
            if number in SIGNALS:
                at_once, is_second = is_second or not self.is_patient, True
                if not at_once:  # said here, for a handler may have come amid a line being written
                    log.info("Stopping after this step and a last reading (again to stop at once)")
                elif not self._obeyed.wait(GRACE):
                    log.error("stopped at once, while waiting for something else")
                    os._exit(code(number))
        os.close(ear)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        is_second, self.received = self.received > 0, number
        if is_second or not self.is_patient:
            self._obeyed.set()
            raise KeyboardInterrupt
