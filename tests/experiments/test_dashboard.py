import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "experiments" / "dashboard.py"


def dashboard(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {"NETRC": str(home / "netrc"), "WANDB_CONFIG_DIR": str(home)}
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_dry_run_names_every_panel_that_is_promised(tmp_path: Path) -> None:
    done = dashboard(tmp_path, "--dry-run", "--project", "mine", "--entity", "me")
    assert (done.returncode, done.stderr) == (0, "")
    whole = json.loads(done.stdout)
    assert (whole["project"], whole["entity"]) == ("mine", "me")
    section = whole["spec"]["section"]
    panels: dict[str, list[dict[str, Any]]] = {}
    for group in section["panelBankConfig"]["sections"]:
        for panel in group["panels"]:
            panels.setdefault(panel["viewType"], []).append(panel["config"])
    assert panels["Parameter Importance"][0]["targetKey"] == "held_out_loss"
    (axes,) = panels["Parallel Coordinates Plot"]
    assert [column["accessor"] for column in axes["columns"]] == [
        *("config:mask.value.ratio", "config:mask.value.patch_size"),
        *("summary:held_out_loss", "summary:skips_normal", "summary:skips_reduce"),
    ]
    bars = [bar["metrics"] for bar in panels["Bar Chart"]]
    assert ["skips_normal", "chance_skips_normal"] in bars
    curves = {curve["chartTitle"]: curve for curve in panels["Run History Line Plot"]}
    assert curves["Held-out loss"]["metrics"] == ["held_out_loss"]
    assert {curve["xAxis"] for curve in curves.values()} == {"step"}
    (runs,) = section["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    assert {"config:mask.value.ratio", "summary:verdict"} <= runs["runFeed"]["columnVisible"].keys()


def test_saving_without_a_login_is_one_line(tmp_path: Path) -> None:
    done = dashboard(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "dashboard: not logged in; run `wandb login` first, or look with --dry-run\n"
    )
