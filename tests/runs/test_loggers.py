import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mae_nas.runs import loggers
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.loggers import TensorboardSettings, WandbSettings, start_log


def test_tensorboard_drops_what_a_killed_process_wrote_behind_its_checkpoint(
    tmp_path: Path,
) -> None:
    for step, value in ((0, 1.0), (3, 2.0)):
        written = TensorboardSettings().start(RunFolder(tmp_path), {}, step, [])
        for later in range(step + 1, step + 6):
            written.row({"step": later, "loss": value, "absent": float("nan")})
        written.close({}, 0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = [(point.step, point.value) for point in events.Scalars("loss")]
    assert points == [(1, 1.0), (2, 1.0), (3, 1.0), *((step, 2.0) for step in range(4, 9))]
    assert events.Tags()["scalars"] == ["loss"]


def test_wandb_disabled_leaves_nothing(tmp_path: Path) -> None:
    written = WandbSettings(mode="disabled").start(RunFolder(tmp_path), {}, 0, [])
    written.row({"step": 1})
    written.close({}, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "{", '{"id": 3, "told": 2}', '{"id": "x", "told": null}'),
        *('{"id": "x", "told": NaN}', '{"id": "x", "told": -1}'),
    ],
)
def test_a_run_whose_id_is_lost_gets_another(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Mock(id="new", offline=True)
    monkeypatch.setattr(wandb, "init", init := Mock(return_value=run))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    folder = RunFolder(tmp_path)
    folder.wandb.write_text(text)
    start_log(WandbSettings(), folder, {}, 2, [{"step": 1}, {"step": 2}])
    assert init.call_args.kwargs["id"] is None
    assert json.loads(folder.wandb.read_text()) == {"id": "new", "told": 0}
    assert run.log.call_count == 2
    (line,) = caplog.messages
    assert line == f"{folder.wandb} is damaged; wandb shows the run anew, under another id"


def test_wandb_online_asks_its_server_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loggers._obstacle.cache_clear()
    asked = []

    def answer(server: str, timeout: float) -> io.BytesIO:
        asked.append((server, timeout))
        return io.BytesIO()

    monkeypatch.setattr(loggers, "urlopen", answer)
    # The real one starts a process, which later processes would find in the environment.
    server = SimpleNamespace(settings=SimpleNamespace(base_url="http://127.0.0.1:9"))
    monkeypatch.setattr(wandb, "setup", lambda _: server)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    for _ in range(2):  # to be judged, and to be used
        WandbSettings(mode="online")
    assert asked == [("http://127.0.0.1:9", loggers.ANSWER_SECONDS)]


DEAD = """
import logging, os, signal, subprocess, sys, time
from pathlib import Path
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.loggers import WandbSettings, start_log

logging.basicConfig(stream=sys.stdout, format="%(message)s")
told = start_log(WandbSettings(), RunFolder(Path(sys.argv[1])), {}, 0, [])
find = ["pgrep", "-P", str(os.getpid()), "-f", "wandb-core"]
for process in subprocess.check_output(find, text=True).split():
    os.kill(int(process), signal.SIGKILL)
time.sleep(0.3)
told.row({"step": 1})
told.row({"step": 2})
told.close({}, 0)
"""


@pytest.mark.slow
def test_a_dead_process_of_wandb_is_one_warning_to_the_very_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DEAD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "WandbLog failed (Connection lost); the run goes on without it\n"
    assert done.stderr == ""
