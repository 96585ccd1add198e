"""Exit codes: scripts and schedulers may rely on them."""

import signal

DONE = 0
FAILED = 1
CONFIGURATION = 2
COLLAPSED = 3
REQUEUE = 75
INTERRUPTED = 130


def stopped_by(number: int) -> int:
    """The code of a run that a signal stopped: only Ctrl-C is a person's, who wants no requeue."""
    return INTERRUPTED if number == signal.SIGINT else REQUEUE
