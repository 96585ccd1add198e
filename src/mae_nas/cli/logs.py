"""Where messages go: plain to the terminal, with timestamps to the run's log."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

log = logging.getLogger("mae_nas")


@contextmanager
def logging_to(path: Path, console: Console) -> Iterator[None]:
    """Send our messages to `console` and `path`, and Python's warnings to `path`."""
    to_file, to_console = LogFile(path, encoding="utf-8"), ConsoleHandler(console)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    warnings = logging.getLogger("py.warnings")
    # Lightning's last word when a rank has died, before it kills the others and this process.
    launcher = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")
    launcher.setLevel(logging.INFO)
    pairs = ((log, to_file), (log, to_console), (warnings, to_file))
    pairs += ((launcher, to_file), (launcher, to_console))
    level, propagates = log.level, log.propagate
    log.setLevel(logging.DEBUG)
    to_console.setLevel(logging.INFO)
    log.propagate = False
    logging.captureWarnings(True)
    for logger, handler in pairs:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, handler in pairs:
            logger.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates
        with suppress(OSError):
            to_file.close()


class LogFile(logging.FileHandler):
    """A log that a full disk cuts short in silence: what matters fails where it is written."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        del record


class Terminal(Console):
    """Falls silent for good when whoever reads its lines has gone: no search ends for a `tee`."""

    def on_broken_pipe(self) -> None:  # rich would exit
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(line: str) -> None:
    """Print a line as it is, unless whoever read our lines has gone, or what held them is full."""
    with suppress(OSError):
        Terminal().out(line, highlight=False)


class ConsoleHandler(logging.Handler):
    """Prints through rich, so that lines and the progress bar do not disturb each other."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(record.getMessage(), markup=False, highlight=False)
