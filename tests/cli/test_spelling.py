import shlex

import pytest

from mae_nas.cli.compose import compose
from mae_nas.cli.spelling import quoted

TEXTS = [
    "plain",
    "/a/b-c_d.e",
    "",
    "null",
    "007",
    "größe 図, (old) [1] {2}=3",
    'it\'s "quoted"',
    "back\\slash\\",
    "\\\\",
    'both \\"',
    "q\\\\'",
    "${name} $HOME `id` $(id)",
    "\\${name}",
    "a: b # c; d & e | f > g * ? ! ~ % @",
]


@pytest.mark.parametrize("text", TEXTS)
def test_hydra_and_the_shell_read_back_what_was_quoted(text: str) -> None:
    (word,) = shlex.split(shlex.quote(f"data.root={quoted(text)}"))
    assert compose(["data=folder", word]).config["data"]["root"] == text
