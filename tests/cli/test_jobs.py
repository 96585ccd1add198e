from pathlib import Path

import pytest

from mae_nas.cli import jobs
from mae_nas.cli.compose import Composed, compose
from mae_nas.cli.jobs import compose_grid, folder_name, plan_jobs, split_values
from mae_nas.runs.files import write_json
from mae_nas.runs.folder import RunFolder

GROUPS = ("decoder", "space", "experiment")


def grid(*overrides: str) -> dict[tuple[str, ...], Composed | str]:
    return compose_grid(split_values(overrides, GROUPS), None)


def test_a_folder_is_named_by_the_values_of_the_axes() -> None:
    assert folder_name({"mask.ratio": "0.2", "seed": "1"}) == "mask.ratio=0.2,seed=1"


def test_the_order_of_the_axes_names_no_other_folder() -> None:
    assert folder_name({"seed": "1", "mask.ratio": "0.2"}) == "mask.ratio=0.2,seed=1"


def test_points_that_look_alike_as_files_have_folders_of_their_own() -> None:
    points = [{"data.root": root} for root in ("/a/b", "/a_b", "/a" + "b" * 200, "/a" + "b" * 201)]
    names = [folder_name(point) for point in points]
    assert len(set(names)) == 4
    assert all(len(name) < 150 and "/" not in name for name in names)


def test_a_value_that_some_points_take_is_left_to_the_others_jobs() -> None:
    names = ["decoder=unet,hierarchical", "space=s0,s1", "decoder.upsample=nearest,x"]
    with pytest.raises(ValueError, match=r"^decoder\.upsample: no such key") as refused:
        grid(*names)  # no point with unet can be
    assert len(str(refused.value).splitlines()) == 1
    assert len(grid("decoder=unet,hierarchical", "seed=0,1")) == 2


def test_keys_that_only_a_class_knows_can_be_swept_over() -> None:
    mine = ["decoder=custom", "decoder._target_=mine.Mine", "decoder.size=1,2"]
    planned, _ = plan_jobs(mine, None)
    assert [(job.config or {})["decoder"] for job in planned] == [
        {"_target_": "mine.Mine", "size": 1},
        {"_target_": "mine.Mine", "size": 2},
    ]


def test_trainings_are_swept_over_too() -> None:
    planned, _ = plan_jobs(["genotype=DARTS_V2,random:0", "recipe.optimizer.lr=0.1"], None, "train")
    assert [job.point for job in planned] == [{"genotype": "DARTS_V2"}, {"genotype": "random:0"}]
    assert [(job.config or {})["genotype"] for job in planned] == ["DARTS_V2", "random:0"]
    assert {job.command[3] for job in planned} == {"train"}
    with pytest.raises(ValueError, match=r"^mask\.ratio: no such key"):
        plan_jobs(["genotype=DARTS_V2", "mask.ratio=0.1,0.2"], None, "train")


def test_names_are_judged_once_for_all_values_that_change_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    monkeypatch.setattr(jobs, "compose", lambda *given: calls.append(given) or compose(*given))
    planned, _ = plan_jobs(["mask.ratio=0.1,0.2,0.3", "decoder=simmim,unet", "seed=0,1"], None)
    assert (len(planned), len(calls)) == (12, 2)


def test_a_jobs_configuration_is_what_its_process_composes() -> None:
    names = ["experiment=demo", "data.held_out=0.1,0.2", "decoder=simmim,unet", "scale=smoke"]
    for job in plan_jobs([*names, "search.arch_optimizer.betas=[0.1,0.9],[0.2,0.9]"], None)[0]:
        process = compose(list(job.arguments)).config
        assert {**(job.config or {}), "left_out": process["left_out"]} == process


def test_a_sweep_may_set_what_its_own_options_alone_know(tmp_path: Path) -> None:
    given = [f"hydra.sweep.dir={tmp_path}", "decoder=choice(unet)", "decoder.width=8"]
    (job,), _ = plan_jobs(given, None)
    assert job.folder == tmp_path / "decoder=unet"
    assert job.config is not None
    assert job.config["decoder"]["width"] == 8


def test_axes_may_stand_in_a_file_and_the_command_line_wins(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = 'name: mine\nhydra: {sweeper: {params: {seed: "0,1", mask.ratio: "0.2,0.4"}}}\n'
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    planned, _ = plan_jobs(["experiment=mine", "seed=7,7"], tmp_path)
    assert [str(job.folder) for job in planned] == [
        "runs/sweeps/mine/mask.ratio=0.2,seed=7",
        "runs/sweeps/mine/mask.ratio=0.4,seed=7",
    ]
    assert planned[1].arguments == (
        *(f"--config-dir={tmp_path}", "seed=7", "mask.ratio=0.4", "experiment=mine"),
    )


def test_the_clusters_options_are_the_sweeps_not_the_jobs() -> None:
    options = "hydra.launcher.slurm.additional_parameters={nodelist: n1}"
    (job, _), common = plan_jobs([options, "seed=0,1", "trainer.devices=2"], None)
    assert common == [f"++{options}", "++trainer.devices=2"]
    assert job.arguments == ("seed=0", "trainer.devices=2")
    assert (job.devices, job.nodes, job.on_gpus) == (2, 1, True)


def test_a_job_has_ended_where_its_own_result_lies(tmp_path: Path) -> None:
    job, other = plan_jobs(["seed=0,1", f"hydra.sweep.dir={tmp_path}"], None)[0]
    assert job.ended == ""
    folder = RunFolder(job.folder)
    folder.path.mkdir()
    assert job.config is not None
    folder.write_config(job.config, [])
    assert job.ended == ""
    write_json(folder.summary, {"state": "finished", "config": job.config})
    assert job.ended == "finished"
    assert {path.name for path in job.folder.iterdir()} == {"config.json", "summary.json"}
    folder.path.rename(other.folder)
    assert other.ended == ""  # another seed's
