from pathlib import Path

import pytest

import mae_nas
from mae_nas.cli.compose import compose
from mae_nas.cli.library import conf_dir


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - every line is asserted
        compose(list(overrides))
    return str(error.value).splitlines()


def test_compose_gives_plain_resolved_values() -> None:
    composed = compose(["mask.ratio=0.6", "decoder=unet", "name=try"])
    assert composed.config["mask"] == {
        "_target_": "mae_nas.masking.Masking",
        "ratio": 0.6,
        "patch_size": 8,
        "mode": "dense",
    }
    assert type(composed.config["decoder"]) is dict
    assert composed.config["decoder"]["width"] == 64
    assert "hydra" not in composed.config
    assert composed.run_dir.parent == Path("runs/try")
    assert not composed.run_dir_given


def test_compose_knows_a_chosen_run_folder(tmp_path: Path) -> None:
    composed = compose([f"hydra.run.dir={tmp_path}"])
    assert composed.run_dir == tmp_path
    assert composed.run_dir_given


def test_compose_reports_all_mistakes_at_once() -> None:
    lines = problems(
        "mask.ratoi=0.5",
        "decoder=hierarchicl",
        "experiment=dem",
        "seed=1,2",
        "mask.ratio=[1",
        "data=folder",
    )
    starts = sorted(line.split(":")[0] for line in lines)
    assert starts == [
        "data.root",
        "decoder=hierarchicl",
        "experiment=dem",
        "mask.ratio=[1",
        "mask.ratoi",
        "seed=1,2",
    ]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("mask.ratoi=0.5", "mask.ratoi: no such key; did you mean mask.ratio?"),
        ("ratio=0.5", "ratio: no such key; did you mean mask.ratio?"),
        ("maks.ratio=0.5", "maks.ratio: no such key; did you mean mask.ratio?"),
        ("mask.zzz=1", "mask.zzz: no such key; mask has _target_, mode, patch_size, ratio"),
        ("++mask.zzz.y=1", "mask.zzz.y: no such key"),
        ("+new.key=1", "new.key: no such key"),
        ("+sede=1", "sede: no such key; did you mean seed?"),
        ("+mask.ratio=0.5", "+mask.ratio: the key exists; write mask.ratio=…"),
        ("~seeed", "seeed: no such key; did you mean seed?"),
        ("hydra.run.dri=x", "hydra.run.dri: no such key; did you mean hydra.run.dir?"),
        ("hydra.verbose=true", "hydra.verbose: no such key; hydra has launcher, run, sweep"),
        ("hydra.job.chdir=true", "hydra.job.chdir: no such key"),
        ("hydra.mode=MULTIRUN", "hydra.mode: no such key; hydra has launcher, run, sweep"),
        ("hydra.output_subdir=x", "hydra.output_subdir: no such key"),
        ("~hydra.verbose", "hydra.verbose: no such key"),
        ("hydra.launcher._target_=mine.Mine", "hydra.launcher._target_: no such key"),
        ("hydra={verbose: true}", "hydra.verbose: no such key"),
        ("hydra=null", "hydra: a section, not a value; set hydra.run, hydra.sweep, hydra.launcher"),
        ("search.arch_optimizer={lrr: 1}", "search.arch_optimizer.lrr: no such key; did you mean "),
        ("decoder=null", "decoder=null: no such option (custom, hierarchical, simmim, unet)"),
        ("decoder=hierarchicl", "decoder=hierarchicl: no such option; did you mean hierarchical?"),
        ("decoder=[unet]", "decoder: a group takes one name of custom, "),
        ("supernet=3", "supernet: a section, not a value; set supernet.width, supernet.depth, "),
        ("data=folder", "data.root: needed, e.g. data.root=/path/to/images"),
        ("decoder=custom", "decoder._target_: needed, e.g. decoder._target_=my_module.MyClass"),
        ("mask@x=default", "mask@x=default: packages (@) are not used here; write mask=…"),
        (
            "mask.ratio",
            "mask.ratio: cannot be read as key=value; write KEY=VALUE, without a space beside =",
        ),
        ("=0.5", "=0.5: cannot be read as key=value; write KEY=VALUE, without a space beside ="),
        ("mask.ratio=[1", "mask.ratio=[1: cannot be read as key=value; a value with special "),
        ("seed=range(3)", "seed=range(3): several values are a sweep, with -m; a list"),
        (
            "experiment=demo,null_arm",
            "experiment=demo,null_arm: several values are a sweep, ",
        ),
        ("seed=${nope}", "seed: Interpolation key 'nope' not found"),
        (
            "name=${oc.env:MAE_NAS_UNSET}",
            "name: \"Environment variable 'MAE_NAS_UNSET' not found\"",
        ),
        ("hydra.run.dir=", "hydra.run.dir: needed, "),
        ("hydra.sweep.dir=", "hydra.sweep.dir: needed, "),
    ],
)
def test_compose_says_what_is_wrong_in_one_line(override: str, line: str) -> None:
    assert problems(override)[0].startswith(line)


def test_compose_lets_constructors_judge_keys_of_a_custom_class() -> None:
    composed = compose(["decoder=custom", "decoder._target_=mine.Mine", "decoder.x=1"])
    assert composed.config["decoder"] == {"_target_": "mine.Mine", "x": 1}
    assert composed.targets == {"mine.Mine"}
    assert composed.touched == ("decoder", "decoder._target_", "decoder.x")


def test_compose_lets_a_named_class_bring_its_keys_without_custom() -> None:
    composed = compose(["decoder._target_=mine.Mine", "decoder.x=1"])
    assert composed.config["decoder"]["x"] == 1


def test_compose_adds_a_constructor_argument_with_plus() -> None:
    composed = compose(["+search.weight_optimizer.nesterov=true"])
    assert composed.config["search"]["weight_optimizer"]["nesterov"] is True


def test_compose_lets_the_last_option_of_a_group_win() -> None:
    assert compose(["decoder=unet", "decoder=simmim"]).config["decoder"]["upsample"] == "shuffle"
    assert compose(["experiment=demo", "experiment=null"]).config["name"] == "search"


def test_compose_command_line_beats_experiment() -> None:
    config = compose(["experiment=demo", "supernet.width=6"]).config
    assert config["name"] == "demo"
    assert config["supernet"]["width"] == 6


def test_compose_finds_the_users_own_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my conf"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nname: mine\nseed: 7\n")
    composed = compose(["experiment=mine"], folder)
    assert (composed.config["name"], composed.config["seed"]) == ("mine", 7)


def test_compose_says_what_a_users_experiment_lacks(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("trainer: {batch_size: 8}\n")
    line = r"^experiment/mine\.yaml: its first line must be `# @package _global_`$"
    with pytest.raises(ValueError, match=line):
        compose(["experiment=mine"], tmp_path)


def test_compose_refuses_a_missing_or_broken_users_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--config-dir: .* is not a folder"):
        compose([], tmp_path / "absent")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match=r"broken\.yaml") as error:
        compose(["experiment=broken"], tmp_path)
    assert all(line for line in str(error.value).splitlines())


def test_conf_dir_is_the_wheels_or_the_checkouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (conf_dir() / "search.yaml").is_file()
    package = tmp_path / "src" / "mae_nas"
    monkeypatch.setattr(mae_nas, "__file__", str(package / "__init__.py"))
    with pytest.raises(ValueError, match=r"installation: .* holds no search\.yaml"):
        conf_dir()
    for folder in (tmp_path / "conf", package / "conf"):  # the wheel's goes before the checkout's
        folder.mkdir(parents=True)
        (folder / "search.yaml").write_text("name: x\n")
        assert conf_dir() == folder.resolve()


def test_compose_says_that_a_deleted_key_does_not_exist() -> None:
    lines = problems("decoder=custom", "decoder._target_=mine.Mine", "~decoder.x")
    assert lines == ["Could not delete from config. 'decoder.x' does not exist."]
