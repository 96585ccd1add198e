import numpy as np
import pytest

from mae_nas.data import Split, Synthetic
from mae_nas.data.loading import store_of_arrays
from mae_nas.data.splits import group_images, split_images
from mae_nas.data.store import ImageStore


def store_of(names: list[str], values: list[int] | None = None) -> ImageStore:
    values = values or list(range(len(names)))
    images = [np.array([[[value % 256], [value // 256]]], np.uint8) for value in values]
    return store_of_arrays(images, names, side=1)


def numbered(count: int) -> ImageStore:
    return store_of([f"{i}" for i in range(count)])


def split_of(store: ImageStore, seed: int = 0, **options: object) -> Split:
    return split_images(Synthetic(**options), store, seed)  # type: ignore[arg-type]


def everything(split: Split) -> list[int]:
    return np.concatenate([split.weights, split.architecture, split.held_out]).tolist()


def test_halves_are_equal_and_the_held_out_come_from_the_architecture() -> None:
    split = split_of(numbered(101))
    assert [len(part) for part in (split.weights, split.architecture, split.held_out)] == [
        50,
        41,
        10,
    ]
    assert sorted(everything(split)) == list(range(101))
    assert len(split_of(numbered(101), held_out=3).held_out) == 3


def test_split_depends_on_the_seed_alone() -> None:
    splits = [everything(split_of(numbered(40), seed)) for seed in (1, 1, 2)]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2]


def test_ordered_split_is_that_of_darts() -> None:
    split = split_of(numbered(30), split="ordered")
    assert split.weights.tolist() == list(range(15))
    assert split.architecture.tolist() == list(range(15, 27))
    assert sorted(split.held_out) == [27, 28, 29]


@pytest.mark.parametrize("rule", ["parent", r"patient(\d+)", r"^patient\d+"])
@pytest.mark.parametrize("order", ["random", "ordered"])
def test_groups_are_never_divided(rule: str, order: str) -> None:
    names = [f"patient{i % 13}/{i}.png" for i in range(97)]
    split = split_of(store_of(names), group=rule, split=order)
    parts = [{names[i].partition("/")[0] for i in part} for part in vars(split).values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 13
    assert sorted(everything(split)) == list(range(97))
    assert 1 <= len(split.held_out) <= 9


def test_names_that_do_not_match_are_their_own_groups() -> None:
    store = store_of(["scan7_a", "x", "scan7_b", "y", "scan8_a"])
    groups = group_images(store.files, r"scan(\d+)", store.digests)
    assert groups.tolist() == [0, 1, 0, 2, 3]
    line = r"^data\.group: .* matches none of 2 files; .* such as cat/0_a$"
    with pytest.raises(ValueError, match=line):
        group_images(["cat/0_a", "cat/1_a"], r"^(\w+)_", store.digests[:2])


def test_exact_duplicates_share_a_group_across_folders() -> None:
    names = ["a/0", "b/1", "c/2", "a/3", "c/4", "d/5"]
    store = store_of(names, [1, 2, 3, 4, 2, 5])  # b/1 is c/4
    assert group_images(store.files, "none", store.digests).tolist() == [0, 1, 2, 3, 1, 4]
    assert group_images(store.files, "parent", store.digests).tolist() == [0, 1, 1, 0, 1, 2]


def test_held_out_is_a_whole_group_even_if_that_is_more_than_a_tenth() -> None:
    names = [f"{i % 4}/{i}" for i in range(12)]
    split = split_of(store_of(names), group="parent")
    assert [len(part) for part in vars(split).values()] == [6, 3, 3]


def test_too_few_groups_and_too_small_splits_are_one_line_each() -> None:
    with pytest.raises(ValueError, match=r"data\.group: 9 images in 2 groups;"):
        split_of(store_of([f"{i % 2}/{i}" for i in range(9)]), group="parent")
    split = split_of(numbered(40))
    split.check_batch(16)
    with pytest.raises(ValueError, match=r"17 does not fit splits of 20 .*16 .*4 .*use 16 or less"):
        split.check_batch(17)
