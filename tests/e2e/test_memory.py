import csv
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import json, resource, sys
import lightning.pytorch as pl
from mae_nas.cli.main import main
from mae_nas.runs import callbacks
from mae_nas.runs.pictures import Pictures

# Matplotlib's own caches grow at the first pictures, whose moments depend on the clock.
Pictures.draw = lambda *_: None
seen = {}
after = callbacks.Clock.on_train_batch_end

def measured(self, trainer, *rest):
    after(self, trainer, *rest)
    if trainer.global_step in (500, 2000):
        pages = int(open("/proc/self/statm").read().split()[1])
        seen[trainer.global_step] = pages * resource.getpagesize()

callbacks.Clock.on_train_batch_end = measured
code = main(sys.argv[1:])
print(json.dumps(seen))
sys.exit(code)
"""
ARGUMENTS = [
    "search",
    "data=synthetic",
    "data.images=96",
    "data.side=8",
    "mask.patch_size=2",
    "space=s2",
    "supernet.width=2",
    "supernet.depth=3",
    "data.batch_size=4",
    "trainer.max_epochs=200",
    "trainer.max_steps=2000",
]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_host_memory_is_flat_over_two_thousand_steps(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *ARGUMENTS, f"hydra.run.dir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["2000"] - seen["500"] < 2000 * resource.getpagesize()
    with (tmp_path / "run/metrics.csv").open() as file:
        assert int(list(csv.DictReader(file))[-1]["step"]) == 2000
