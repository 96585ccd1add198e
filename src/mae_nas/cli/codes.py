"""Exit codes: scripts and schedulers may rely on them."""

DONE = 0
FAILED = 1
CONFIGURATION = 2
COLLAPSED = 3
REQUEUE = 75
INTERRUPTED = 130
