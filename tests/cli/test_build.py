import functools

import pytest

from mae_nas.cli.build import build
from mae_nas.decoders import Decoder
from mae_nas.masking import Masking
from mae_nas.runs.loggers import LoggerSettings

HERE = "tests_cli_build_module"
SOURCE = """
class Thing:
    def __init__(self, size: int, channels: int, seed: int = 5, part=None) -> None:
        if size < 0:
            raise ValueError(f"size {size}: must not be negative")
        self.values = (size, channels, seed)
        self.part = part
"""


@pytest.fixture
def target(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path_factory.mktemp("modules")
    (folder / f"{HERE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(folder))
    return f"{HERE}.Thing"


def values(built: object) -> tuple[int, int, int]:
    return built.values  # type: ignore[attr-defined]


def test_build_gives_facts_to_who_asks(target: str) -> None:
    facts = {"channels": 3, "side": 32}
    assert values(build(object, {"_target_": target, "size": 7}, facts)) == (7, 3, 5)
    assert values(build(object, {"_target_": target, "size": 7}, {**facts, "seed": 9})) == (7, 3, 9)


def test_build_says_which_node_is_wrong(target: str) -> None:
    with pytest.raises(ValueError, match=r"^decoder: size -1: must not be negative$"):
        build(object, {"_target_": target, "size": -1}, {"channels": 3}, "decoder")


def test_build_leaves_inner_nodes_to_be_completed(target: str) -> None:
    inner = {"_target_": "mae_nas.masking.Masking", "ratio": 0.25}
    built = build(object, {"_target_": target, "size": 1, "part": inner}, {"channels": 3})
    part = built.part  # type: ignore[attr-defined]
    assert isinstance(part, functools.partial)
    assert part() == Masking(ratio=0.25)


def test_build_refuses_a_class_of_another_kind() -> None:
    node = {"_target_": "torch.nn.Identity"}
    line = r"^decoder\._target_: torch\.nn\.Identity is not a mae_nas\.decoders\.Decoder$"
    with pytest.raises(ValueError, match=line):
        build(Decoder, node, {}, "decoder")
    line = (
        r"^logger\._target_: torch\.nn\.Identity is not a mae_nas\.runs\.loggers\.LoggerSettings$"
    )
    with pytest.raises(ValueError, match=line):
        build(LoggerSettings, node, {}, "logger")
    assert build(Masking, {"_target_": "mae_nas.masking.Masking", "ratio": 0.25}, {}).ratio == 0.25


def test_build_says_in_one_line_that_an_argument_does_not_fit(target: str) -> None:
    with pytest.raises(ValueError, match=r"^decoder: .*missing 1 required.* 'size'$"):
        build(object, {"_target_": target}, {"channels": 3}, "decoder")
    with pytest.raises(ValueError, match=r"^decoder: .*'<' not supported.*$"):
        build(object, {"_target_": target, "size": "a"}, {"channels": 3}, "decoder")
