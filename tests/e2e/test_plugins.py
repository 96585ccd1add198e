"""A user's own decoder, space, data and relaxation, each in one file outside the package."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mae_nas.cli.main import main
from mae_nas.genotype import read_genotype

Search = Callable[..., int]
Captured = pytest.CaptureFixture[str]

DECODER = """
from collections.abc import Sequence

from torch import Tensor, nn

from mae_nas.backbone import FeatureInfo
from mae_nas.decoders import Decoder


class Bilinear(Decoder):
    def __init__(
        self, features: Sequence[FeatureInfo], channels: int, hidden: int, slope: float = 0.1
    ) -> None:
        super().__init__(features, [2])
        if hidden < 1:
            raise ValueError(f"hidden {hidden}: must be at least 1")
        self.net = nn.Sequential(
            nn.Conv2d(features[1].channels, hidden, 1),
            nn.LeakyReLU(slope),
            nn.Conv2d(hidden, channels, 3, padding=1),
            nn.Upsample(scale_factor=features[1].stride, mode="bilinear"),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.net(features[1])
"""

SPACE = """
from torch import Tensor, nn

from mae_nas.spaces import SearchSpace
from mae_nas.spaces.primitives import PRIMITIVES, Primitive


class Negate(Primitive):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(stride)

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        return -self.pool(x)


class Pair(SearchSpace):
    nodes = 3

    def __init__(self, kept: int = 2) -> None:
        self.kept_edges = kept

    def primitives(self, kind: str):
        return [("skip_connect", "negate", "max_pool_3x3")] * len(self.edges)

    def operations(self):
        return {**PRIMITIVES, "negate": lambda channels, stride: Negate(stride)}
"""

SOURCE = """
from dataclasses import dataclass

import numpy as np

from mae_nas.data import ImageSource
from mae_nas.data.loading import store_of_arrays


@dataclass(kw_only=True)
class Stripes(ImageSource):
    amount: int
    contrast: float = 1.0

    natural_channels = 2

    def load(self, on_progress=None):
        number, row, column = np.ogrid[: self.amount, : self.side, : self.side]
        wave = np.sin(number + row * (1 + number % 3) + 0 * column)
        images = np.uint8(127 + 100 * self.contrast * np.stack([wave, -wave], -1))
        return store_of_arrays(images, [f"{i:03d}" for i in range(self.amount)], self.side)
"""

OWN = [
    *("decoder=custom", "decoder._target_=own_decoder.Bilinear", "decoder.hidden=3"),
    *("space=custom", "space._target_=own_space.Pair"),
    *("data=custom", "data._target_=own_data.Stripes", "data.amount=50", "data.side=8"),
    "data.batch_size=4",
]


@pytest.fixture
def own(search: Search, tmp_path: Path, tiny: list[str]) -> Search:
    """A search by the classes of this file; `search` has made the folder the current one."""
    del search
    for name, text in (("decoder", DECODER), ("space", SPACE), ("data", SOURCE)):
        (tmp_path / f"own_{name}.py").write_text(text)
    others = [o for o in tiny if not o.startswith(("data", "space"))]
    return lambda *overrides: main(["search", *others, *overrides])


def test_own_classes_search(own: Search, tmp_path: Path) -> None:
    assert own(*OWN, "space.kept=1", "trainer.max_steps=3", "hydra.run.dir=run") == 0
    genotype = read_genotype(str(tmp_path / "run"))
    assert [edge.target for edge in genotype.normal.edges] == [2, 3, 4]
    assert {edge.primitive for edge in genotype.normal.edges} <= {
        "skip_connect",
        "negate",
        "max_pool_3x3",
    }
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["data"]["channels"] == 2
    assert summary["data"]["images"] == 50
    assert summary["config"]["decoder"]["hidden"] == 3
    assert main(["draw", f"genotype={tmp_path / 'run'}", "output=own.svg"]) == 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["decoder.hiden=3"], "decoder.hiden: .* no such (argument|key).*decoder.hidden"),
        (["decoder.hidden=many"], "decoder.hidden: 'many' is not an int"),
        (["decoder.hidden=0"], "decoder: hidden 0: must be at least 1"),
        (["space.kept=two"], "space.kept: 'two' is not an int"),
        (["data.contrast=high"], "data.contrast: 'high' is not a float"),
        (["data.crop_padding=-1"], "data.crop_padding: -1 is below 0"),
        (["decoder._target_=own_decoder.Bilinaer"], "did you mean Bilinear"),
        (["decoder._target_=own_decodr.Bilinear"], "did you mean own_decoder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_arguments_of_own_classes_are_checked_like_ours(
    own: Search, tmp_path: Path, capsys: Captured, overrides: list[str], said: str
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__")
    assert own(*OWN, *overrides) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line), line
    assert before == sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__")


def test_the_decoder_of_the_readme_searches(search: Search, tmp_path: Path) -> None:
    readme = Path(__file__).parents[2] / "README.md"
    codes = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [code for code in codes if "class MyDecoder" in code]
    (tmp_path / "mine.py").write_text(code)
    named = ["decoder=custom", "decoder._target_=mine.MyDecoder", "decoder.width=3"]
    assert search(*named, "trainer.max_steps=2", "hydra.run.dir=run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["undetermined"] == ["reduce"]


def test_a_relaxation_may_have_parameters_of_its_own(search: Search, tmp_path: Path) -> None:
    (tmp_path / "edges.py").write_text(EDGES)
    named = ["relaxation=custom", "relaxation._target_=edges.Edges", "space=s2"]
    assert search(*named, "trainer.max_steps=2", "hydra.run.dir=run") == 0
    header, first, *_ = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert float(row["grad_norm_alpha_strengths"]) > 0
    assert float(row["grad_norm_alpha_normal"]) > 0


EDGES = """
import torch
from mae_nas.relaxations import Mixture, Relaxation

class Edges(Relaxation):
    def __init__(self, space) -> None:
        super().__init__(space)
        self.strengths = torch.nn.Parameter(torch.zeros(len(space.edges)))

    def mixture(self):
        edges = 2 * self.strengths.sigmoid()[:, None]
        return {kind: Mixture(a.softmax(-1) * edges) for kind, a in self.alphas.items()}
"""


def test_a_missing_argument_of_an_own_class_is_named(own: Search, capsys: Captured) -> None:
    assert own(*(o for o in OWN if o != "decoder.hidden=3" and o != "data.amount=50")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert any("decoder.hidden: needed" in line for line in lines)
    assert any("data.amount: needed" in line for line in lines)


def test_a_run_of_own_classes_goes_on_only_when_they_are_named_again(
    own: Search, tmp_path: Path, capsys: Captured, assert_same: Search
) -> None:
    assert own(*OWN, "hydra.run.dir=whole") == 0
    assert own(*OWN, "trainer.max_steps=5", "hydra.run.dir=run") == 0
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    targets = [o for o in OWN if "_target_" in o]
    for forgotten in targets:
        named = [o for o in targets if o != forgotten]
        assert main(["search", "resume=run", "trainer.max_steps=null", *named]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"name it yourself: {forgotten}" in line
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()}
    assert {name for name in after if after[name] != before.get(name)} <= {"run.lock"}
    assert main(["search", "resume=run", "trainer.max_steps=null", *targets]) == 0
    assert_same(tmp_path / "run", tmp_path / "whole")
