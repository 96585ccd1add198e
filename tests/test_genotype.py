import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mae_nas.genotype import PUBLISHED, CellGenotype, Edge, Genotype, read_genotype

# DARTS's second-order CIFAR-10 cells as its authors print them.
DARTS_V2 = """
DARTS_V2 = Genotype(
    normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
            ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)],
    normal_concat=[2, 3, 4, 5],
    reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1),
            ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)],
    reduce_concat=range(2, 6))
"""
DIGEST = "2c2d9e73b2b9a28ff60ad27f5d12494119f004585d2c9ac983d24cbc475021d4"


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def small() -> Genotype:
    normal = CellGenotype((Edge("skip_connect", 0, 2), Edge("max_pool_3x3", 2, 4)), (2, 4))
    reduce = CellGenotype((Edge("noise", 0, 1), Edge("noise", 0, 1)), (1,), inputs=1)
    return Genotype(normal, reduce)


def written(genotype: Genotype) -> str:
    return json.dumps(genotype.to_dict())


def test_published_cells_are_the_authors() -> None:
    lines = [
        f"{name} {kind} "
        + " ".join(f"{edge.primitive}:{edge.source}>{edge.target}" for edge in cell.edges)
        + f" | {','.join(map(str, cell.concat))}"
        for name, genotype in PUBLISHED.items()
        for kind, cell in genotype.cells.items()
    ]
    assert len(PUBLISHED) == 20
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == DIGEST


def test_published_operations_have_the_known_counts() -> None:
    cells = [cell for genotype in PUBLISHED.values() for cell in genotype.cells.values()]
    assert Counter(edge.primitive for cell in cells for edge in cell.edges) == {
        "sep_conv_3x3": 111,
        "skip_connect": 72,
        "max_pool_3x3": 50,
        "sep_conv_5x5": 33,
        "avg_pool_3x3": 22,
        "dil_conv_3x3": 19,
        "dil_conv_5x5": 13,
        "sep_conv_7x7": 4,
        "conv_7x1_1x7": 1,
        "noise": 1,
    }
    assert [len(PUBLISHED["FairDARTS_a"].cells[kind].edges) for kind in ("normal", "reduce")] == [
        4,
        8,
    ]
    assert PUBLISHED["FairDARTS_a"].normal.concat == (2, 4, 5)
    assert PUBLISHED["AmoebaNet"].reduce.concat == (3, 4, 6)


@pytest.mark.parametrize("genotype", [*PUBLISHED.values(), small()])
def test_json_returns_the_same_genotype(genotype: Genotype) -> None:
    assert Genotype.from_dict(json.loads(written(genotype))) == genotype


def test_json_has_the_documented_schema() -> None:
    assert json.loads(written(small())) == {
        "format": "mae_nas.genotype/1",
        "normal": {
            "edges": [
                {"primitive": "skip_connect", "source": 0, "target": 2},
                {"primitive": "max_pool_3x3", "source": 2, "target": 4},
            ],
            "concat": [2, 4],
            "inputs": 2,
        },
        "reduce": {
            "edges": [{"primitive": "noise", "source": 0, "target": 1}] * 2,
            "concat": [1],
            "inputs": 1,
        },
    }


def test_json_may_hold_more_at_its_top() -> None:
    assert Genotype.from_dict({**small().to_dict(), "step": 7, "verdict": "ok"}) == small()


def put(*path: str | int, value: object) -> Callable[[dict], None]:
    def change(document: dict) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("format", value="mae_nas.genotype/2"), "format must be 'mae_nas.genotype/1'"),
        (lambda document: document.pop("format"), "key 'format' is missing"),
        (lambda document: document.pop("reduce"), "key 'reduce' is missing"),
        (put("normal", value=[1]), "normal: wanted an object with edges, concat, inputs"),
        (put("normal", "width", value=16), "normal: unknown key 'width'"),
        (put("normal", "edges", value="ab"), "normal: edges must be a list"),
        (put("normal", "edges", value=[]), "normal: concat names node 2"),
        (put("normal", "edges", 1, value=None), r"normal: edges\[1\]: wanted an object"),
        (put("normal", "edges", 1, "weight", value=1), r"edges\[1\]: unknown key 'weight'"),
        (put("normal", "edges", 1, "source", value="0"), r"edges\[1\]: source must be an integer"),
        (put("normal", "edges", 1, "source", value=True), r"edges\[1\]: source must be an integer"),
        (put("normal", "edges", 1, "source", value=4), "0 <= source < target < 64, got source 4"),
        (put("normal", "edges", 1, "source", value=-1), "0 <= source < target"),
        (put("normal", "edges", 1, "source", value=3), "reads node 3, which no edge feeds"),
        (put("normal", "edges", 1, "target", value=10**12), "0 <= source < target < 64"),
        (put("normal", "edges", 0, "target", value=1), "skip_connect 0→1 ends in an input"),
        (put("normal", "edges", 0, "primitive", value="a b\n"), "must be a name like"),
        (put("normal", "edges", 0, "primitive", value=["x"] * 999), "must be a name like"),
        (put("normal", "concat", value=[2, 3]), r"concat names node 3; edges feed \[2, 4\]"),
        (put("normal", "concat", value=[0]), "concat names node 0"),
        (put("normal", "concat", value=[2, 2]), "each once"),
        (put("normal", "concat", value=[]), "concat must name nodes"),
        (put("normal", "concat", value=[2.0]), "a node of concat must be an integer"),
        (put("reduce", "inputs", value=0), "reduce: inputs must lie in 1 … 63"),
        (put("reduce", "inputs", value=None), "reduce: inputs must be an integer"),
    ],
)
def test_wrong_document_is_named_in_one_line(
    change: Callable[[dict], object], expected: str
) -> None:
    document = json.loads(written(small()))
    change(document)
    with pytest.raises(ValueError, match=expected) as error:
        Genotype.from_dict(document)
    one_line(error)


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"format": ', "[" * 100_000, "9" * 5000, "[1]", "null"],
    ids=lambda text: text[:9],
)
def test_text_that_is_no_document_is_named_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "genotype.json").write_text(text)
    with pytest.raises(ValueError, match=r"JSON|wanted an object") as error:
        read_genotype(str(tmp_path))
    one_line(error)


def test_darts_text_is_read_with_or_without_a_name() -> None:
    assert read_genotype(DARTS_V2) == PUBLISHED["DARTS_V2"]
    assert read_genotype(DARTS_V2.replace("DARTS_V2 =", "")) == PUBLISHED["DARTS_V2"]
    assert read_genotype(" ".join(DARTS_V2.split())) == PUBLISHED["DARTS_V2"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("('dil_conv_3x3', 2)", "(open('made', 'w'), 2)", "normal: only lists, tuples"),
        ("[2, 3, 4, 5]", "[open('made', 'w')]", "normal_concat: only lists, tuples"),
        ("range(2, 6)", "list(open('made', 'w'))", "reduce_concat: only lists, tuples"),
        ("range(2, 6)", "range(open('made', 'w'))", "reduce_concat: only lists, tuples"),
        ("range(2, 6)", "range(2, 9" + "9" * 30 + ")", "reduce_concat: wanted range"),
        ("range(2, 6)", "range(2, 6, 0)", "reduce_concat: wanted range"),
        ("range(2, 6)", "range()", "reduce_concat: wanted range"),
        ("range(2, 6)", "6", "reduce_concat: wanted range"),
        ("range(2, 6)", "range(2, 7)", "reduce: concat names node 6"),
        ("range(2, 6))", "range(2, 6), width=3)", "got the fields"),
        ("range(2, 6))", "range(2, 6), normal=[])", "wanted one Genotype|not the text"),
        ("range(2, 6))", "range(2, 6)); open('made', 'w')", "wanted one Genotype"),
        ("range(2, 6))", "range(2, 6)", "not the text of a DARTS genotype"),
        ("range(2, 6))", "-" * 50_000 + "1)", "not the text|reduce_concat"),
        ("Genotype(", "Genotype(3, ", "wanted one Genotype"),
        (", ('dil_conv_3x3', 2)", "", "normal: 7 entries, but two feed each node"),
        ("('dil_conv_3x3', 2)", "'dil_conv_3x3'", "entry 7 is 'dil_conv_3x3'"),
        ("('dil_conv_3x3', 2)", "('dil_conv_3x3', 2, 5)", "normal: entry 7"),
        ("('dil_conv_3x3', 2)", "('dil_conv_3x3', 5)", r"normal: edges\[7\]: wanted 0 <= source"),
    ],
)
def test_wrong_darts_text_is_refused_and_never_run(
    old: str, new: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert old in DARTS_V2
    with pytest.raises(ValueError, match=expected) as error:
        read_genotype(DARTS_V2.replace(old, new))
    one_line(error)
    assert not (tmp_path / "made").exists()


def test_read_genotype_takes_name_text_file_and_run(tmp_path: Path) -> None:
    file = tmp_path / "genotype.json"
    file.write_text(written(small()), encoding="utf-8")
    assert read_genotype("PDARTS") is PUBLISHED["PDARTS"]
    assert read_genotype(DARTS_V2) == PUBLISHED["DARTS_V2"]
    assert read_genotype(str(file)) == small()
    assert read_genotype(str(tmp_path)) == small()


def test_read_genotype_prefers_the_published_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PDARTS").write_text(written(small()), encoding="utf-8")
    assert read_genotype("PDARTS") == PUBLISHED["PDARTS"]
    assert read_genotype("./PDARTS") == small()


def test_read_genotype_names_what_is_near() -> None:
    with pytest.raises(ValueError, match=r"DARTS_v2.*did you mean DARTS_V2 or DARTS_V1") as error:
        read_genotype("DARTS_v2")
    assert "NASNet" not in one_line(error)
    with pytest.raises(ValueError, match="NASNet, AmoebaNet"):
        read_genotype("#")


@pytest.mark.parametrize(
    "source", ["", "x" * 5000, "~nobody_of_this_name/x", "a\nb\0c", "no/where"]
)
def test_read_genotype_survives_any_text(source: str) -> None:
    with pytest.raises(ValueError, match="no such file, run folder or published name") as error:
        read_genotype(source)
    one_line(error)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (written(small())[:-9].encode(), "neither whole JSON nor DARTS's text"),
        (b"\xff\xfe\x00", "not a text file"),
        (b" " * (1 << 20) + written(small()).encode(), "larger than 1048576 bytes"),
        (b"", "neither whole JSON nor DARTS's text"),
    ],
)
def test_read_genotype_names_the_broken_file(content: bytes, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=expected) as error:
        read_genotype(str(file))
    assert one_line(error).startswith(str(file))


def test_read_genotype_of_a_run_without_readings_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"genotype\.json: not found; this is no run folder"):
        read_genotype(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"genotype\.json: not found; a run writes it"):
        read_genotype(str(tmp_path))


def test_read_genotype_refuses_devices() -> None:
    with pytest.raises(ValueError, match="/dev/zero: not a regular file"):
        read_genotype("/dev/zero")


def test_genotype_is_imported_without_torch() -> None:
    check = "import sys, mae_nas.genotype; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", check], env=environment).returncode == 0
