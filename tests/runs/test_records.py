import json
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from mae_nas.cli.search import SearchRun
from mae_nas.runs import records
from mae_nas.runs.records import (
    costs_alone,
    git_state,
    network_costs,
    search_record,
    versions,
)
from mae_nas.runs.tables import MetricsTable
from mae_nas.search import take_reading
from mae_nas.spaces import S0
from mae_nas.supernet import SupernetSize


def test_versions_name_what_a_result_depends_on() -> None:
    found = versions()
    assert torch.__version__.startswith(found["torch"])
    assert found["lightning"] == version("lightning")
    assert {"python", "torchvision", "hydra-core", "numpy", "mae-nas"} <= found.keys()


def repository(folder: Path) -> Callable[..., str]:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", str(folder), *identity, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    git("init", "-q")
    return git


def test_git_state_is_the_codes_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "src" / "records.py"
    file.parent.mkdir()
    file.write_text("one = 1\n")
    monkeypatch.setattr(records, "__file__", str(file))
    nothing = {"commit": None, "dirty": None}
    assert git_state() == nothing  # no repository
    git = repository(tmp_path)
    assert git_state() == nothing  # someone else's repository: our file is not in it
    git("add", "src/records.py")
    git("commit", "-q", "-m", "one")
    assert git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "genotype.png").write_text("drawn by a user")
    assert git_state()["dirty"] is False
    other = file.with_name("other.py")
    other.write_text("two = 2\n")
    assert git_state()["dirty"] is True
    other.unlink()
    file.write_text("one = 2\n")
    assert git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_costs_are_those_of_one_image(prepared: Callable[..., SearchRun]) -> None:
    run = prepared("decoder=simmim", "decoder.kernel=1", "supernet.depth=3")
    costs = network_costs(run.module, run.data)
    # F3 has 4 nodes × 4 channels × 2² and stride 4: one pointwise convolution to 3 · 4² channels.
    assert costs["decoder"] == {"parameters": 64 * 48 + 48, "multiply_adds": 64 * 48 * 2 * 2}
    parameters = sum(p.numel() for p in run.module.supernet.parameters())
    assert costs["supernet"]["parameters"] == parameters
    assert costs["supernet"]["multiply_adds"] > 8 * 8 * 3 * 12 * 9  # the stem alone
    assert run.module.training
    alone = prepared("decoder=simmim", "decoder.kernel=1", "supernet.depth=3", "data.held_out=1")
    assert network_costs(alone.module, alone.data) == costs


def test_a_cell_alone_costs_what_its_own_training_says(prepared: Callable[..., SearchRun]) -> None:
    given = ("space=s0", "relaxation=fixed", "genotype=RLNAS_cifar10", "supernet.depth=3")
    run = prepared(*given)
    size, found = SupernetSize(run.config["supernet"]["width"], 3), run.data
    side, channels = found.side, found.channels
    costs = costs_alone("RLNAS_cifar10", S0(), size, side, channels, 3)
    assert costs == network_costs(run.module, run.data)["supernet"]
    assert costs_alone("DARTS_V2", S0(), size, side, channels, 3) != costs
    with pytest.raises(ValueError, match="not in S0"):
        costs_alone("NASNet", S0(), size, side, channels, 3)


def test_search_record_is_that_of_the_last_reading(prepared: Callable[..., SearchRun]) -> None:
    run = prepared()
    space = run.parts.space
    first = take_reading(run.module, space, run.data.held_out_batches(), [])
    table = MetricsTable(run.folder.metrics)
    table.append({"step": 10, "weight_loss": 0.5, "arch_loss": 0.25})
    table.append({"step": 20, "weight_loss": 0.125, "arch_loss": float("nan")})
    record = search_record([first, first], run.folder, space)
    assert record["final"] == {
        "step": 0,
        "held_out_loss": first.held_out_loss,
        "weight_loss": 0.125,
    }
    assert record["verdict"] == "ok"
    assert record["readings"] == 2
    assert record["skip_counts"] == first.skips
    chance = record["skip_chance"]
    assert isinstance(chance, dict)
    assert chance["normal"]["mean"] == pytest.approx(3.6, abs=0.05)
    assert chance["normal"]["at_least_as_many"] == first.chance["normal"]
    assert json.loads(json.dumps(record)).keys() == record.keys()
