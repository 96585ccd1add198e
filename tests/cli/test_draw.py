from pathlib import Path

import pytest

from mae_nas.cli.main import main


def test_draw_takes_darts_text_with_commas_and_equal_signs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = ", ".join("('skip_connect', 0), ('sep_conv_3x3', 1)" for _ in range(4))
    text = f"Genotype(normal=[{pairs}], normal_concat=range(2, 6), "
    text += f"reduce=[{pairs}], reduce_concat=[2, 3, 4, 5])"
    output = tmp_path / "deep" / "cell.png"
    assert main(["draw", f"genotype={text}", f"output={output}"]) == 0
    assert output.stat().st_size > 1000
    assert str(output) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["output=x.png"], "genotype: needed"),
        (
            ["genotpe=DARTS_V2"],
            "'genotpe=DARTS_V2': draw takes genotype=…, output=…; did you mean genotype?",
        ),
        (["genotype=DARTS_V2", "output=x.pdf"], "output: x.pdf is neither a .png nor a .svg file"),
        (["genotype=DARTS_V3"], ""),
    ],
)
def test_draw_refuses_in_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["draw", *arguments]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"mae-nas: {line}")
