import math

import pytest
import torch

from mae_nas.relaxations import DARTS, Mixture
from mae_nas.spaces import S0, S1, S3, SearchSpace


@pytest.mark.parametrize("space", [S0(), S1(), S3()], ids=["S0", "S1", "S3"])
def test_mixture_is_the_softmax_of_each_edge(space: SearchSpace) -> None:
    relaxation = DARTS(space)
    for kind, alpha in relaxation.alphas.items():
        assert alpha.shape == space.shape(kind)
        torch.nn.init.normal_(alpha)
        ops = relaxation.mixture()[kind].ops
        for e, row in enumerate(alpha.tolist()):
            total = sum(math.exp(a) for a in row)
            for k, a in enumerate(row):
                assert ops[e, k].item() == pytest.approx(math.exp(a) / total, abs=1e-6)
    assert list(relaxation.alphas) == ["normal", "reduce"]


def test_alpha_starts_as_small_normal_noise_and_owns_all_parameters() -> None:
    relaxation = DARTS(S0())
    values = torch.cat([alpha.flatten() for alpha in relaxation.parameters()])
    assert len(values) == 2 * 14 * 8
    assert abs(values.mean()) < 4e-3 / len(values) ** 0.5
    assert values.std().item() == pytest.approx(1e-3, rel=4 / (2 * len(values)) ** 0.5)
    normal, reduce = relaxation.alphas.values()
    assert not torch.equal(normal, reduce)
    torch.manual_seed(20)
    assert all(map(torch.equal, relaxation.parameters(), DARTS(S0()).parameters()))


def test_alpha_stays_wide_under_autocast() -> None:
    relaxation = DARTS(S0())
    with torch.autocast("cpu", torch.bfloat16):
        assert relaxation.mixture()["normal"].ops.dtype == torch.float32
    assert relaxation.double().mixture()["reduce"].ops.dtype == torch.float64


def test_weights_are_the_scalars_of_ops_and_carry_its_gradient() -> None:
    ops = torch.rand(3, 2, requires_grad=True)
    mixture = Mixture(ops)
    assert [[w.item() for w in row] for row in mixture.weights] == ops.tolist()
    assert mixture.weights is mixture.weights
    (2 * mixture.weights[1][0] + mixture.weights[2][1]).backward()
    assert ops.grad is not None
    assert ops.grad.tolist() == [[0, 0], [2, 0], [0, 1]]


def test_scores_are_detached_copies() -> None:
    relaxation = DARTS(S0())
    scores = relaxation.scores()
    before = relaxation.mixture()["normal"].ops.detach().clone()
    assert torch.equal(scores["normal"], before)
    assert not scores["normal"].requires_grad
    scores["normal"].zero_()
    assert torch.equal(relaxation.mixture()["normal"].ops, before)
