"""How fast the search is beside itself: ratios and seconds of whole commands on this computer.

    python experiments/benchmarks.py ranks     two processes against one, images a second
    python experiments/benchmarks.py folder    a folder of 100,000 files, first and second start
    python experiments/benchmarks.py sweep     seconds that a sweep adds to each of its jobs

Prints a JSON record each, with commit, versions and computer. Wants an otherwise idle computer.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mae_nas.network.latency import describe_device
from mae_nas.runs.records import git_state, versions

FILES = 100_000
CPU = ["trainer.accelerator=cpu", "efficiency.threads=1"]


def main() -> None:
    """Run the benchmarks that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=list(BENCHMARKS))
    for name in parser.parse_args().names:
        with tempfile.TemporaryDirectory() as folder:
            facts = BENCHMARKS[name](Path(folder))
        origin = {"git": git_state(), "versions": versions(), "cores": os.cpu_count()}
        record = {
            "benchmark": name,
            **facts,
            **origin,
            "device": describe_device(torch.device("cpu")),
        }
        sys.stdout.write(json.dumps(record) + "\n")


def ranks(folder: Path) -> dict[str, object]:
    """Images a second of one single-threaded process and of two, alternating, three times each."""
    common = ["experiment=demo", "trainer.max_steps=40", "data.batch_size=32", "supernet.width=8"]
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for attempt in range(3):
        for devices, found in speeds.items():
            run = folder / f"{devices}-{attempt}"
            search(*common, *CPU, f"trainer.devices={devices}", f"hydra.run.dir={run}")
            found.append(json.loads((run / "summary.json").read_text())["images_per_second"])
    best = {devices: max(found) for devices, found in speeds.items()}
    return {"images_per_second": speeds, "ratio_of_best": best[2] / best[1]}


def folder_of_files(folder: Path) -> dict[str, object]:
    """Seconds to the first step and memory, with an empty cache and with a full one."""
    for number, pixels in enumerate(noise_images()):
        place = folder / "images" / f"{number // 1000:03}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:06}.png", compress_level=1)
    common = ["data=folder", f"data.root={folder / 'images'}", f"data.cache={folder / 'cache'}"]
    common += ["supernet.width=4", "supernet.depth=3", "data.batch_size=16", "data.held_out=64"]
    common += ["trainer.max_epochs=1", "trainer.max_steps=100", *CPU, "efficiency.resident=false"]
    facts: dict[str, object] = {"files": FILES}
    for time_ in ("first", "second"):
        run = folder / time_
        began, samples = time.monotonic(), []
        done = threading.Event()
        process = start(*common, f"hydra.run.dir={run}")
        watcher = threading.Thread(target=sample_memory, args=(process.pid, samples, done, began))
        watcher.start()
        while not (run / "metrics.csv").exists() and process.poll() is None:
            time.sleep(0.05)
        first_step = time.monotonic() - began
        output, _ = process.communicate()
        done.set()
        watcher.join()
        if process.returncode:
            raise SystemExit(output)
        training = [memory for moment, memory in samples if moment > first_step + 5]
        facts[time_] = {
            "seconds_to_first_step": round(first_step, 1),
            "anonymous_mb_at_first_step": training[0] if training else None,
            "anonymous_mb_at_end": training[-1] if training else None,
            "anonymous_mb_most": max(memory for _, memory in samples),
        }
    imports = "import lightning, sys, torch, torchvision, matplotlib.figure"
    code = f"{imports}; sys.stdout.write(open('/proc/self/smaps_rollup').read())"
    status = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    facts["anonymous_mb_of_imports"] = anonymous_megabytes(status.stdout)
    return facts


def sweep(folder: Path) -> dict[str, object]:
    """Wall seconds of a sweep of four jobs of no length, a job, and of one when all are done."""
    common = ["-m", "debug=fast", "seed=0,1,2,3", f"hydra.sweep.dir={folder / 'sweep'}", *CPU]
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        search(*common)
        seconds.append(time.monotonic() - began)
    trained = sum(
        float(re.findall(r"^3,.*", table.read_text(), re.M)[0].split(",")[-2])
        for table in (folder / "sweep").glob("*/metrics.csv")
    )
    return {
        "seconds_a_job": (seconds[0] - trained) / 4,
        "seconds_a_finished_job": seconds[1] / 4,
        "seconds_of_training": trained,
    }


def noise_images() -> Iterator[np.ndarray]:
    """Small RGB images with some structure, so that files have a usual size."""
    random = np.random.default_rng(0)
    for _ in range(FILES):
        corners = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        yield np.asarray(Image.fromarray(corners).resize((32, 32), Image.Resampling.BICUBIC))


def start(*arguments: str) -> subprocess.Popen[str]:
    """`mae-nas search` with these arguments."""
    command = [sys.executable, "-m", "mae_nas", "search", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def search(*arguments: str) -> None:
    """The same to its end; its output is shown if it fails."""
    process = start(*arguments)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(output)


def sample_memory(
    pid: int, samples: list[tuple[float, int]], done: threading.Event, began: float
) -> None:
    """(seconds, megabytes) of the process and its children, five times a second."""
    while not done.wait(0.2):
        total = 0
        for one in (pid, *children(pid)):
            try:
                total += anonymous_megabytes(Path(f"/proc/{one}/smaps_rollup").read_text())
            except (OSError, ValueError):
                continue  # it has just ended
        if total:
            samples.append((time.monotonic() - began, total))


def children(pid: int) -> list[int]:
    """Processes that `pid` started."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def anonymous_megabytes(rollup: str) -> int:
    """Memory of its own, mapped files apart, from the text of /proc/PID/smaps_rollup.

    What forked processes share is divided among them.
    """
    found = re.search(r"Pss_Anon:\s+(\d+) kB", rollup)
    if found is None:
        raise ValueError("no Pss_Anon")
    return int(found[1]) // 1024


BENCHMARKS: dict[str, Callable[[Path], dict[str, object]]] = {
    "ranks": ranks,
    "folder": folder_of_files,
    "sweep": sweep,
}

if __name__ == "__main__":
    main()
