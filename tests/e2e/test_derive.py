"""From a finished search to its cells, the whole way."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mae_nas.cli.main import main
from mae_nas.genotype import read_genotype


def test_the_cells_of_a_finished_search_are_derived_again(
    finished: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = finished()
    words = [f"run={run}", "network.width=4", "network.depth=3", "format=json"]
    capsys.readouterr()
    for more in ([], ["max_skips=0"]):
        assert main(["derive", *words, *more, f"output={tmp_path}/cells"]) == 0
        found = json.loads(capsys.readouterr().out)
        genotype = read_genotype(str(tmp_path / "cells"))
        assert (genotype == read_genotype(str(run))) is (not more or found["limits"] == {})
        assert found["skips"] == sum(e.primitive == "skip_connect" for e in genotype.normal.edges)
    assert found["skips"] == 0
