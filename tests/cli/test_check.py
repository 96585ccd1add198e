import copy
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from mae_nas.cli.check import check
from mae_nas.cli.compose import compose
from mae_nas.cli.hints import describe, fits

ADAM = {"_target_": "torch.optim.Adam"}
IMAGENET = {"_target_": "mae_nas.data.ImageNet", "root": "/images"}
MINE = """
from collections.abc import Sequence
from mae_nas.decoders import HierarchicalDecoder
from mae_nas.relaxations import DARTS
from mae_nas.spaces import S2
class Mine(HierarchicalDecoder):
    def __init__(self, features, channels: int, x: int, taps: Sequence[int] = (1, 2)) -> None:
        super().__init__(features, channels, taps)
class Ranged(S2):
    def __init__(self, size: float = 1.0) -> None:
        if size > 2:
            raise ValueError(f"size {size}: at most 2")
class AskingSpace(S2):
    def __init__(self, seed: int, space, features) -> None: ...
class AskingRelaxation(DARTS):
    def __init__(self, seed: int, space, features) -> None: ...
class AskingDecoder(Mine):
    def __init__(self, seed: int, space, features, inner=None) -> None:
        super().__init__(features, 3, 1)
"""


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    return compose([]).config


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"mine_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return name


def problems(config: Mapping[str, Any], named: set[str] | None = None) -> list[str]:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - every line is asserted
        check(config, named)
    return str(error.value).splitlines()


def changed(config: dict[str, Any], **sections: object) -> dict[str, Any]:
    """A copy in which `a__b=v` sets config["a"]["b"]."""
    config = copy.deepcopy(config)
    for key, value in sections.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    return config


def test_check_accepts_the_defaults(default: dict[str, Any]) -> None:
    check(default)
    check(default, named=set())


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("seed", "a", "seed: 'a' is not an int (8 would be)"),
        ("seed", -1, "seed: -1 is not within 0 and 4294967295"),
        ("name", "../x", "name: '../x' is not a folder name (letters, digits, . _ -)"),
        ("on_collapse", "halt", "on_collapse: 'halt' is not one of warn, stop"),
        ("mask__ratio", "abc", "mask.ratio: 'abc' is not a float (0.5 would be)"),
        ("mask__ratio", True, "mask.ratio: True is not a float (0.5 would be)"),
        ("mask__ratio", 1.5, "mask: ratio 1.5"),
        ("mask__patch_size", 0.5, "mask.patch_size: 0.5 is not an int (8 would be)"),
        ("mask__mode", "dens", "mask.mode: 'dens' is not one of dense, sparse ('dense' would be)"),
        ("decoder__taps", [1, "a"], "decoder.taps: [1, 'a'] is not a list of ints ([1, 2, 3]"),
        ("decoder__kernel", "big", "decoder.kernel: 'big' is not an int or auto ('auto' would be)"),
        (
            "decoder__kernle",
            3,
            "decoder.kernle: HierarchicalDecoder takes no such argument; did yo",
        ),
        ("data__side", -3, "data.side: -3 is not a number of pixels"),
        ("data__root", "/x", "data.root: Digits takes no such argument"),
        ("search__grad_clip", -1.0, "search: grad_clip -1.0"),
        ("search__grad_clip", float("nan"), "search: grad_clip nan: must be positive"),
        ("search__weight_optimizer__lr", -1.0, "search.weight_optimizer: Invalid learning rate"),
        ("search__weight_optimizer__lrr", 1.0, "search.weight_optimizer.lrr: SGD takes no such a"),
        (
            "decoder___target_",
            "mae_nas.decoders.Hierarchical",
            "decoder._target_: mae_nas.decoders ",
        ),
        (
            "decoder___target_",
            "mae_nas.decodrs.X",
            "decoder._target_: no module mae_nas.decodrs; did",
        ),
        (
            "decoder___target_",
            "nowhere.X",
            "decoder._target_: no module nowhere in the current fol",
        ),
        ("decoder___target_", "builtins.dict", "decoder._target_: builtins.dict is not a mae_nas."),
        ("decoder__taps", {"_target_": "builtins.dict"}, "decoder.taps._target_: no signature fou"),
        ("decoder___target_", 3, "decoder._target_: 3 is not a dotted name like my_module.MyClass"),
        ("decodr", {}, "decodr: no such key; did you mean decoder?"),
        ("decoder", {"taps": [1]}, "decoder._target_: needed, the class to build"),
    ],
)
def test_check_says_what_is_wrong(
    default: dict[str, Any], key: str, value: object, line: str
) -> None:
    assert [p for p in problems(changed(default, **{key: value})) if p.startswith(line)]


def test_check_reports_all_mistakes_at_once(default: dict[str, Any]) -> None:
    config = changed(default, seed="a", mask__ratio="b", decoder__kernel=[], data__batch_size=0)
    starts = [line.split(":")[0] for line in problems(config)]
    assert starts == ["seed", "decoder.kernel", "mask.ratio", "data.batch_size"]
    config = changed(default, seed=-1, name="/", mask__ratio=1.5, mask__patch_size=0)
    config = changed(config, decoder__kernel=4, decoder__taps=[4], supernet__depth=2)
    config = changed(config, supernet__width=0, trainer__log_every=0, trainer__accumulate=0)
    config = changed(config, data__held_out=0, data__side=0, search__min_lr=float("nan"))
    config = changed(config, search__grad_clip=0.0, search__weight_optimizer__lr=-1.0)
    lines = problems(config)
    for mistake in (
        *(
            "name: ",
            "seed: ",
            "mask: ratio",
            "mask: patch_size",
            "decoder: kernel",
            "decoder: taps",
        ),
        *(
            "supernet: depth",
            "supernet: width",
            "trainer: log_every",
            "trainer: accumulate",
        ),
        *("data.held_out", "data.side", "search: min_lr", "search: grad_clip"),
        "search.weight_optimizer: Invalid learning rate",
    ):
        assert len([line for line in lines if line.startswith(mistake)]) == 1, (mistake, lines)
    assert len(lines) == 15


def test_check_treats_the_users_class_like_ours(default: dict[str, Any], mine: str) -> None:
    target = f"{mine}.Mine"
    check(changed(default, decoder={"_target_": target, "x": 1, "taps": [1]}))
    lines = problems(changed(default, decoder={"_target_": target, "y": 1, "taps": 3}))
    assert lines == [
        "decoder.y: Mine takes no such argument; decoder has taps, x",
        "decoder.x: needed, Mine has no default for it",
        "decoder.taps: 3 is not a list of ints ([1, 2] would be)",
    ]
    lines = problems(changed(default, decoder={"_target_": f"{mine}.Mien"}))
    assert lines == [f"decoder._target_: {mine} has no Mien; did you mean Mine?"]
    lines = problems(changed(default, space={"_target_": f"{mine}.Ranged", "size": 3}))
    assert lines == ["space: size 3: at most 2"]


def test_check_reports_arguments_that_no_one_supplies(default: dict[str, Any], mine: str) -> None:
    for path, missing in {
        "space": ["seed", "space", "features"],
        "relaxation": ["seed", "features"],
        "decoder": ["seed"],
    }.items():
        name = f"Asking{path.title()}"
        node = {"_target_": f"{mine}.{name}"}
        lines = problems(changed(default, **{path: node}))
        assert lines == [f"{path}.{m}: needed, {name} has no default for it" for m in missing]
    inner = {"_target_": f"{mine}.AskingSpace"}  # completed by who receives it
    check(changed(default, decoder={**node, "seed": 1, "inner": inner}))


def test_check_says_how_the_users_module_fails(
    default: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_one.py").write_text("def f(:\n")
    (tmp_path / "broken_two.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "broken_three.py").write_text("1 / 0\n")
    for name, text in {
        "broken_one": "importing broken_one failed: SyntaxError: ",
        "broken_two": "broken_two imports not_installed_anywhere, which is not installed",
        "broken_three": "importing broken_three failed: ZeroDivisionError: ",
    }.items():
        (line,) = problems(changed(default, space={"_target_": f"{name}.X"}))
        assert line.startswith(f"space._target_: {text}")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "mae_nas.runs.files.os.system",  # begins well, leads elsewhere
        "mae_nas.runs.files.Path",
        "mae_nas.cli.main.main",  # ours, but a function
        "torch.optim.lr_scheduler.warnings.warn",
    ],
)
@pytest.mark.parametrize("key", ["decoder___target_", "search__weight_optimizer___target_"])
def test_check_refuses_foreign_classes_in_what_was_read_back(
    default: dict[str, Any], target: str, key: str
) -> None:
    config = changed(default, **{key: target})
    path = key.removesuffix("___target_").replace("__", ".")
    (line,) = [line for line in problems(config, set()) if "_target_" in line]
    assert line.startswith(f"{path}._target_: ")


def test_check_calls_nothing_that_is_no_class_of_its_kind(
    default: dict[str, Any], tmp_path: Path
) -> None:
    command = f"touch {tmp_path}/called"
    (line,) = problems(changed(default, decoder={"_target_": "os.system", "command": command}))
    assert line == "decoder._target_: os.system is not a mae_nas.decoders.Decoder"
    assert list(tmp_path.iterdir()) == []


BUILT = """
from mae_nas.objectives import Reconstruction
class Eager(Mine):
    def __init__(self, features, channels: int, inner=None) -> None:
        super().__init__(features, channels, 1)
        open("built", "w")
class EagerObjective(Reconstruction):
    def __init__(self, decoder, features, side, masking, inner=None) -> None:
        super().__init__(decoder, features, side, masking)
        open("built", "w")
"""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective__target": "foo"}, "objective.target: 'foo' is not one of image, permuted"),
        (
            {"objective__target": "permuted", "trainer__accumulate": 2},
            "objective.target=permuted takes the target from the same micro-batch",
        ),
        ({"objective__target": "permuted", "data__batch_size": 1}, "objective.target=permuted "),
        ({"objective__side": 64}, "objective.side: is a fact of the data and the other sections"),
        ({"decoder__channels": 3}, "decoder.channels: is a fact of the data"),
        ({"search__second_order": True, "search__weight_optimizer": ADAM}, "search.second_order: "),
        ({"efficiency__workers": -1}, "efficiency: workers -1: must be 0 or more, or auto"),
        (
            {"space": {"_target_": "MINE.Misspelt"}},
            "space: Misspelt: no operation sep_conv_9x9; known: none, ",
        ),
        (
            {"relaxation": {"_target_": "MINE.Hot", "temperature": -1}},
            "relaxation: temperature -1: must be positive",
        ),
        ({"decoder": {"_target_": "MINE.Wide", "width": -1}}, "decoder: Trying to create tensor"),
        (
            {"data": IMAGENET | {"fraction": 3.0}, "mask__patch_size": 14},
            "data.fraction: 3.0 is not in (0, 1]",
        ),
    ],
)
def test_check_tells_each_mistake_once_and_nothing_else(
    default: dict[str, Any], mine: str, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    (tmp_path / f"{mine}.py").write_text(MINE + PLUGINS)
    config = changed(default, **json.loads(json.dumps(changes).replace("MINE", mine)))
    (line,) = problems(config)
    assert line.startswith(said)


PLUGINS = """
from torch import nn
class Misspelt(S2):
    candidates = ("skip_connect", "sep_conv_9x9")
class Hot(DARTS):
    def __init__(self, space, temperature: float = 1.0) -> None:
        super().__init__(space)
        if temperature <= 0:
            raise ValueError(f"temperature {temperature}: must be positive")
class Wide(Mine):
    def __init__(self, features, channels: int, width: int = 8) -> None:
        super().__init__(features, channels, 1)
        self.paint = nn.Conv2d(channels, width, 3)
"""


def test_check_accepts_what_a_constructor_has_a_default_for(default: dict[str, Any]) -> None:
    config = changed(default)
    for section, key in {"mask": "patch_size", "trainer": "accumulate"}.items():
        del config[section][key]
    check(config)
    check(changed(config, objective__target="permuted"))


def test_check_does_not_guess_the_side_of_a_folder(default: dict[str, Any]) -> None:
    # 32 × 32 patches suit the stem that folders of small images get, though not that of large ones.
    folder = {"_target_": "mae_nas.data.Folder", "root": "/images"}
    check(changed(default, data=folder, mask__mode="sparse", mask__patch_size=32))


def test_check_leaves_what_needs_an_unknown_side_for_later(
    default: dict[str, Any], mine: str, tmp_path: Path
) -> None:
    (tmp_path / f"{mine}.py").write_text(MINE + SIDED)
    folder = {"_target_": "mae_nas.data.Folder", "root": "/images"}
    check(changed(default, data=folder, decoder={"_target_": f"{mine}.Sided"}))
    null_arm = changed(default, data=folder, objective__target="permuted", trainer__accumulate=2)
    (line,) = problems(null_arm)
    assert line.startswith("objective.target=permuted takes the target")


SIDED = """
class Sided(Mine):
    def __init__(self, features, channels: int, side: int) -> None:
        super().__init__(features, channels, side // features[-1].stride)
"""


def test_check_builds_nothing_of_which_a_part_is_foreign(
    default: dict[str, Any], tmp_path: Path, mine: str
) -> None:
    # It is named as ours, and is not: whoever is given it must not be called.
    foreign = {"_target_": "mae_nas.runs.files.Path"}
    (tmp_path / f"{mine}.py").write_text(MINE + BUILT)
    for section, name in {"decoder": "Eager", "objective": "EagerObjective"}.items():
        node = {"_target_": f"{mine}.{name}", "inner": foreign}
        lines = problems(changed(default, **{section: node}), {f"{mine}.{name}"})
        assert [line.split(":")[0] for line in lines] == [f"{section}.inner._target_"]
        assert not (tmp_path / "built").exists()


def test_check_imports_nothing_foreign(default: dict[str, Any], mine: str) -> None:
    config = changed(default, decoder={"_target_": f"{mine}.Mine", "x": 1})
    (line,) = problems(config, set())
    assert "name it yourself" in line
    assert mine not in sys.modules
    hidden = changed(default, decoder__inner=[{"_target_": f"{mine}.Mine"}])
    assert problems(hidden, set())[0].startswith("decoder.inner.0._target_: ")
    assert mine not in sys.modules
    check(config, {f"{mine}.Mine"})


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, True),
        (True, int, False),
        (1, bool, False),
        (1.0, int, False),
        ("a", str, True),
        (None, int | None, True),
        ("x", int | None, False),
        ("auto", int | Literal["auto"], True),
        (1, Literal[True], False),
        ([1, 2], Sequence[int], True),
        ("ab", Sequence[str], False),
        ([1, "a"], list[int], False),
        ([0.9, 0.99], tuple[float, float], True),
        ([0.9], tuple[float, float], False),
        ([1, 2, 3], tuple[int, ...], True),
        ({"a": 1}, dict[str, int], True),
        (object(), complex, True),
        ("x", Any, True),
    ],
)
def test_fits_reads_annotations(value: object, hint: object, expected: bool) -> None:
    assert fits(value, hint) is expected


def test_describe_speaks_plainly() -> None:
    assert describe(int | Literal["auto"]) == "an int or auto"
    assert describe(Sequence[int]) == "a list of ints"
    assert describe(str | None) == "text or null"
