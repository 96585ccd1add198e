from mae_nas.cli.jobs import folder_name


def test_a_folder_is_named_by_the_values_of_the_axes() -> None:
    assert folder_name({"mask.ratio": "0.2", "seed": "1"}) == "mask.ratio=0.2,seed=1"


def test_the_order_of_the_axes_names_no_other_folder() -> None:
    assert folder_name({"seed": "1", "mask.ratio": "0.2"}) == "mask.ratio=0.2,seed=1"


def test_points_that_look_alike_as_files_have_folders_of_their_own() -> None:
    points = [{"data.root": root} for root in ("/a/b", "/a_b", "/a" + "b" * 200, "/a" + "b" * 201)]
    names = [folder_name(point) for point in points]
    assert len(set(names)) == 4
    assert all(len(name) < 150 and "/" not in name for name in names)
