"""Exit codes: scripts and schedulers may rely on them."""

import signal

DONE = 0
FAILED = 1
CONFIGURATION = 2
COLLAPSED = 3
REQUEUE = 75
INTERRUPTED = 130


class JobsFailedError(Exception):
    """Of what a command was to set beside each other, some has failed; the message names it."""


def is_in_order(code: int | None) -> bool:
    """Whether a run ended so that its folder says how far it came."""
    return code in (DONE, COLLAPSED, REQUEUE, INTERRUPTED)


def stopped_by(number: int) -> int:
    """The code of a run that a signal stopped: only Ctrl-C is a person's, who wants no requeue."""
    return INTERRUPTED if number == signal.SIGINT else REQUEUE
