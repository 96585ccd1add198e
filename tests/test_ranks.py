from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from mae_nas import ranks
from mae_nas.masking import BatchNorm

Work = Callable[[], object]


def _enter(rank: int, size: int, folder: Path, work: Work) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size
    )
    torch.save(work(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def on_ranks(size: int, folder: Path, work: Work) -> list[Any]:
    """What `work` returns on each of `size` forked ranks."""
    start_processes(_enter, (size, folder, work), nprocs=size, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def test_alone_everything_is_the_identity() -> None:
    x = torch.randn(3)
    before = x.clone()
    ranks.average_([x])
    ranks.check_equal([x], "x")
    assert torch.equal(x, before)
    assert torch.equal(ranks.gather(x), x[None])
    assert ranks.maximum(3, -1) == [3, -1]
    assert ranks.total(0.5, 2) == [0.5, 2.0]
    assert (ranks.size(), ranks.index()) == (1, 0)


def test_average_maximum_and_total_over_ranks(tmp_path: Path) -> None:
    def work() -> object:
        mine = torch.full((2, 3), float(ranks.index())), torch.tensor(10.0 * ranks.index())
        ranks.average_(mine)
        return [*mine, *ranks.maximum(ranks.index(), -ranks.index()), *ranks.total(0.5)]

    for wide, scalar, high, low, half in on_ranks(3, tmp_path, work):
        assert torch.equal(wide, torch.ones(2, 3))
        assert scalar == 10.0
        assert (high, low, half) == (2, 0, 1.5)


def test_gradients_of_a_gather_return_to_their_ranks(tmp_path: Path) -> None:
    def work() -> object:
        x = torch.tensor([1.0 + ranks.index(), 2.0], requires_grad=True)
        every = ranks.gather(x)
        (every.prod(0) * torch.tensor([1.0, 3.0])).sum().backward()
        return x.grad

    first, second = on_ranks(2, tmp_path, work)
    # Both ranks' losses depend on both: each gradient is twice the one of a single loss.
    assert first.tolist() == [4.0, 12.0]
    assert second.tolist() == [2.0, 12.0]


def test_a_gather_leaves_the_gradients_of_others_alone(tmp_path: Path) -> None:
    def work() -> object:
        x = torch.ones(2, requires_grad=True)
        beside = torch.zeros(2, 2, requires_grad=True)
        earlier = 3 * beside  # its backward runs after the gather's
        # The sum hands both of its terms the same gradient, which the collective must not touch.
        (ranks.gather(x) + earlier).square().sum().backward()
        return beside.grad

    for gradient in on_ranks(2, tmp_path, work):
        assert torch.equal(gradient, torch.full((2, 2), 6.0))


def test_a_rank_that_differs_is_named(tmp_path: Path) -> None:
    def work() -> object:
        try:
            ranks.check_equal([torch.zeros(2), torch.tensor(float(ranks.index() == 2))], "α")
        except RuntimeError as error:
            return str(error)
        return ""

    assert set(on_ranks(3, tmp_path, work)) == {"α of rank 2 differs from that of rank 0"}


@pytest.mark.parametrize("form", ["dense", "sparse", "packed"])
@pytest.mark.parametrize("size", [2, 3])
def test_synchronised_batch_norm_is_that_of_the_whole_batch(
    size: int, form: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, 5, 7, dtype=torch.float64) + 3 * torch.randn(6, 4, 1, 1).double()
    weight = torch.randn_like(x)
    # Unequally many on each rank.
    visible = torch.rand(6, 1, 5, 7) < 0.6 if form == "sparse" else None

    def run(images: Tensor, seen: Tensor | None, weights: Tensor) -> list[Tensor]:
        norm = BatchNorm(4).double()
        norm.synchronised = True
        images = images.clone().requires_grad_()
        if form == "packed":
            y = norm.of_visible(images.permute(0, 2, 3, 1).flatten(0, 2))
            y = y.unflatten(0, (-1, 5, 7)).permute(0, 3, 1, 2)
        else:
            y = norm(images, seen)
        (y * weights).sum().backward()
        assert images.grad is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.weight.grad is not None
        return [y.detach(), images.grad, norm.weight.grad, norm.running_mean, norm.running_var]

    def work() -> object:
        share = [None if t is None else t.chunk(size)[ranks.index()] for t in (x, visible, weight)]
        return run(*share)  # type: ignore[arg-type]

    expected = run(x, visible, weight)
    found = on_ranks(size, tmp_path, work)
    joined = [torch.cat([one[0] for one in found]), torch.cat([one[1] for one in found])]
    joined += [sum(one[2] for one in found), *found[-1][3:]]
    for got, wanted in zip(joined, expected, strict=True):
        assert (got - wanted).abs().max() < 1e-12
    assert torch.equal(found[0][3], found[1][3])
