"""A signal ends the process wherever it stands."""

import os
import signal
import subprocess
import sys
import time

import pytest

WAITING = """
import ctypes
import sys
import threading
from mae_nas import stopping
from mae_nas.cli.codes import stopped_by

stopping.GRACE = 0.2
stopper = stopping.Stopper()
with stopper.listening(stopped_by):
    stopper.is_patient = sys.argv[1] == "patient"
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(256)
    lock(mutex)
    # By a thread, when this one waits below: before, Python itself would act on the signal.
    threading.Timer(1.0, print, ["waiting"], {"flush": True}).start()
    lock(mutex)  # for ever, and unlike a sleep through every signal
"""


@pytest.mark.parametrize(
    ("mood", "sent", "code"),
    [
        ("impatient", [signal.SIGTERM], 75),
        ("impatient", [signal.SIGINT], 130),
        ("patient", [signal.SIGUSR1, signal.SIGTERM], 75),
    ],
)
def test_a_signal_ends_a_process_that_waits_outside_python(
    mood: str, sent: list[signal.Signals], code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, mood],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    for number in sent:
        process.send_signal(number)
    try:
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert said == "stopped at once, while waiting for something else\n"


WRITING = """
import fcntl
import logging
import os
import sys
from mae_nas import stopping
from mae_nas.cli.codes import stopped_by

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
stopper = stopping.Stopper()
with stopper.listening(stopped_by):
    stopper.is_patient = True
    os.write(1, b"x" * fcntl.fcntl(1, fcntl.F_GETPIPE_SZ))
    print("full", file=sys.stderr, flush=True)
    print("a line", flush=True)  # waits for its reader
print("received", stopper.received)
"""


def test_a_signal_amid_a_line_does_not_break_it() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # else a print's end is a write of its own
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "full\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    try:
        said, wrong = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, wrong) == (0, "")
    assert said.lstrip("x").splitlines() == [
        "a line",
        "Stopping after this step and a last reading (again to stop at once)",
        f"received {int(signal.SIGTERM)}",
    ]
