import shlex

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


def test_hydra_and_the_shell_read_back_what_was_quoted() -> None:
    line = [f"decoder.text{i}={quoted(text)}" for i, text in enumerate(TEXTS)]
    words = shlex.split(" ".join(map(shlex.quote, line)))
    given = compose(["decoder=custom", "decoder._target_=mine.Mine", *words]).config["decoder"]
    assert [given[f"text{i}"] for i in range(len(TEXTS))] == TEXTS
