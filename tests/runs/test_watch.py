import os
import subprocess
import sys

import pytest

WATCH = """
import subprocess, sys, time
from types import SimpleNamespace
from mae_nas.runs.watch import RankWatch

launcher = SimpleNamespace(procs=[])
watch = RankWatch(lambda line: print("recorded:", line, flush=True), grace=0.5)
watch.follow(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher), num_devices=3))
ranks = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
launcher.procs += ranks
ranks[0].kill()
time.sleep(600)  # as a collective that nobody answers
"""


@pytest.mark.slow
def test_a_rank_that_waits_for_a_dead_one_is_ended_with_the_others() -> None:
    # The pipe is closed when the second rank has ended too.
    done = subprocess.run(
        [sys.executable, "-c", WATCH],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("another rank has ended, and with it the search: process ")
    assert done.stderr.endswith(" with -9\n")
    assert done.stdout == f"recorded: {done.stderr}"
