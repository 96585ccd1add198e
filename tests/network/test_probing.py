import math
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mae_nas.data import Digits
from mae_nas.network import probing
from mae_nas.network.probing import (
    accuracy_interval,
    few_labels,
    knn_accuracy,
    linear_probe,
    rank_me,
)

Labelled = tuple[Tensor, Tensor, Tensor, Tensor]


def clouds(n: int, m: int, width: int, classes: int, apart: float = 1.0) -> Labelled:
    """Correlated features of overlapping classes, of all scales."""
    labels = torch.arange(n + m) % classes
    features = torch.randn(n + m, width) + apart * torch.randn(classes, width)[labels]
    features = features @ torch.randn(width, width) * torch.logspace(-2, 2, width) + 3
    return features[:n], labels[:n], features[n:], labels[n:]


def knn_by_loops(train: Tensor, labels: Tensor, test: Tensor, k: int) -> list[int]:
    told = []
    for row in test.double():
        near = []
        for other, label in zip(train.double(), labels.tolist(), strict=True):
            norm = math.sqrt(sum(row.tolist()[i] ** 2 for i in range(len(row))))
            norm *= math.sqrt(sum(x**2 for x in other.tolist()))
            product = sum(a * b for a, b in zip(row.tolist(), other.tolist(), strict=True))
            near.append((product / norm if norm else 0.0, label))
        votes: Counter[int] = Counter()
        for similarity, label in sorted(near, reverse=True)[:k]:
            votes[label] += math.exp(similarity / 0.07)  # pyright: ignore[reportArgumentType]
        told.append(min(votes, key=lambda label: (-votes[label], label)))
    return told


@pytest.mark.parametrize(("k", "block"), [(1, 1 << 22), (4, 70), (20, 1), (60, 100)])
def test_knn_is_that_of_loops(k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_BLOCK", block)  # 70: two test images at a time, and one left
    train, labels, test, test_labels = clouds(31, 17, 5, 3, apart=0.3)
    told = knn_accuracy(train, labels, test, test_labels, k)
    expected = knn_by_loops(train, labels, test, k)
    assert told.predictions.tolist() == expected
    assert len(set(expected)) == 3
    right = sum(a == b for a, b in zip(expected, test_labels.tolist(), strict=True))
    assert told.accuracy == pytest.approx(right / 17, abs=1e-12)


def test_near_neighbours_outvote_more_far_ones() -> None:
    angles = torch.tensor([0.0, 0.5, 0.5])
    train = torch.stack([angles.cos(), angles.sin()], 1)
    told = knn_accuracy(train, torch.tensor([6, 2, 2]), 9 * train[:1], torch.tensor([6]))
    assert 2 * math.exp((math.cos(0.5) - 1) / 0.07) < 1
    assert told.predictions.tolist() == [6]
    assert told.accuracy == 1


def test_knn_of_collapsed_and_zero_features_is_the_commonest_class() -> None:
    labels = torch.tensor([4, 4, 7, 7, 7, 1, 7])
    for train in (torch.ones(7, 3), torch.zeros(7, 3)):
        test = torch.tensor([[0.0, 0.0, 0.0], [2.0, 1.0, 0.0]])
        told = knn_accuracy(train, labels, test, torch.tensor([7, 4]), k=2)
        assert told.predictions.tolist() == [7, 7]
        assert told.accuracy == 0.5


def test_the_lower_class_wins_a_tie_whatever_the_order_of_images() -> None:
    train, labels = torch.eye(4)[[0, 0, 0, 0]], torch.tensor([5, 3, 5, 3])
    for order in ([0, 1, 2, 3], [1, 0, 3, 2], [3, 1, 0, 2]):
        told = knn_accuracy(train, labels[order], train[:1], torch.tensor([3]), k=1)
        assert told.predictions.tolist() == [3]


def by_newton(x: Tensor, labels: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """W (K, D) and bias (K,) by Newton's steps on standardised features, by autograd."""
    shape = (int(labels.max()) + 1, x.shape[1] + 1)

    def loss(flat: Tensor) -> Tensor:
        weight = flat.view(shape)
        logits = x @ weight[:, :-1].T + weight[:, -1]
        cost = F.cross_entropy(logits, labels) + strength / 2 * weight[:, :-1].square().sum()
        return cost + flat.view(shape)[:, -1].mean() ** 2  # picks one of the equal biases

    def gradient() -> Tensor:
        return torch.autograd.grad(loss(flat), flat)[0]

    flat = torch.zeros(math.prod(shape), dtype=torch.float64, requires_grad=True)
    for _ in range(25):
        step = torch.linalg.solve(torch.autograd.functional.hessian(loss, flat), gradient())
        length = 1.0
        while loss(flat - length * step) > loss(flat) + 1e-13:
            length /= 2
        flat = (flat - length * step).detach().requires_grad_()
    assert gradient().abs().max() < 1e-12
    flat = flat.detach()
    return flat.view(shape)[:, :-1], flat.view(shape)[:, -1]


def test_probe_is_the_optimum_that_newton_finds() -> None:
    train, labels, test, _ = clouds(41, 13, 4, 3)
    mean, deviation = train.double().mean(0), train.double().std(0, correction=0)
    strengths = [1.0, 0.03, 1e-3]
    fits = probing._fits(train, labels, test, strengths)
    for strength, (logits, converged) in zip(strengths, fits, strict=True):
        weight, bias = by_newton((train.double() - mean) / deviation, labels, strength)
        expected = (test.double() - mean) / deviation @ weight.T + bias
        assert converged
        told, expected = logits.log_softmax(1), expected.log_softmax(1)
        torch.testing.assert_close(told, expected, rtol=1e-4, atol=1e-4)


def test_probe_of_one_separable_feature_has_the_optimum_on_paper() -> None:
    # Features ±1 are standardised already; the two rows of W are −w and w, the bias is 0, and the
    # derivative of log(1 + exp(−2 w)) + λ w² vanishes.
    strength = 0.05
    train, labels = torch.tensor([[5.0], [7.0]]).repeat(3, 1), torch.tensor([0, 1]).repeat(3)
    logits, converged = next(probing._fits(train, labels, torch.tensor([[7.0]]), [strength]))
    w = float(logits[0, 1] - logits[0, 0]) / 2
    assert converged
    assert 2 / (1 + math.exp(2 * w)) == pytest.approx(2 * strength * w, abs=1e-5)
    told = linear_probe(train, labels, torch.tensor([[5.9], [6.1]]), torch.tensor([0, 1]))
    assert told.predictions.tolist() == [0, 1]
    assert told.accuracy == 1


def test_dead_features_change_nothing_even_where_test_images_differ() -> None:
    train, labels, test, test_labels = clouds(60, 22, 5, 3)
    plain = linear_probe(train, labels, test, test_labels)
    dead = torch.tensor([0.0, 0.1, -3e7])
    wide = torch.cat([train, dead.expand(60, 3)], 1)
    wide[::7, -1] += 2  # the last bit of float32
    wide_test = torch.cat([test, 1e3 * torch.randn(22, 3)], 1)
    told = linear_probe(wide, labels, wide_test, test_labels)
    assert told.predictions.tolist() == plain.predictions.tolist()
    assert told[2:] == plain[2:]
    only = linear_probe(dead.expand(60, 3), torch.arange(60) // 40, test[:, :3], test_labels)
    assert only.predictions.unique().tolist() == [0]  # the commonest
    assert only.converged


@pytest.mark.parametrize("scale", [1e-3, 40.0])
def test_probe_ignores_scale_shift_and_names_of_classes(scale: float) -> None:
    train, labels, test, test_labels = clouds(60, 22, 5, 3, apart=0.4)
    told = linear_probe(train, labels, test, test_labels)
    moved = linear_probe(
        train * scale + scale, 7 * labels + 2, test * scale + scale, 7 * test_labels + 2
    )
    assert moved.predictions.tolist() == (7 * told.predictions + 2).tolist()
    assert moved[2:] == told[2:]
    assert 0.34 < told.accuracy < 1


def test_strength_is_chosen_by_held_out_images() -> None:
    train, labels, test, test_labels = clouds(47, 22, 6, 3, apart=0.4)
    strengths = [3.0, 1e-3, 0.2, 1e-5]
    folds = list(probing._folds(labels, probing.derive_key(0, probing.Purpose.FOLD)))
    right = []
    for strength in sorted(strengths, reverse=True):
        count = 0
        for held in folds:
            logits, _ = next(probing._fits(train[~held], labels[~held], train[held], [strength]))
            count += int((logits.argmax(1) == labels[held]).sum())
        right.append(count)
    best = [i for i in range(4) if right[i] == max(right)]
    told = linear_probe(train, labels, test, test_labels, strengths=strengths)
    assert told.strength == sorted(strengths, reverse=True)[best[len(best) // 2]]
    assert told.held_out == 47
    assert linear_probe(train, labels, test, test_labels, strengths=[3.0, 3e-9]).at_grid_end


def test_fit_that_is_cut_short_has_not_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    data = clouds(47, 22, 6, 3, apart=0.4)
    assert linear_probe(*data).converged
    monkeypatch.setattr(probing, "_ITERATIONS", 2)
    assert not linear_probe(*data).converged


def test_folds_are_stratified_and_leave_an_image_of_each_class() -> None:
    labels = torch.cat([torch.tensor([8, 3, 3]), torch.arange(57) % 2]).flip(0)
    folds = torch.stack(list(probing._folds(labels, 5)))
    assert len(folds) == 5
    assert folds.sum(0).tolist() == (labels != 8).int().tolist()  # in one fold each
    for held in folds:
        assert set(labels[~held].tolist()) == {0, 1, 3, 8}
        assert int((labels[held] == 0).sum()) in (5, 6)
    many = torch.arange(5003) % 7
    (tenth,) = probing._folds(many, 5)
    counts = many.bincount()
    assert many[tenth].bincount().tolist() == ((counts + 9) // 10).tolist()
    assert not torch.equal(tenth, next(iter(probing._folds(many, 6))))


def test_probe_of_one_image_per_class_has_no_choice() -> None:
    told = linear_probe(torch.eye(4, 6), torch.arange(4), 2 * torch.eye(4, 6), torch.arange(4))
    assert (told.held_out, told.at_grid_end, told.accuracy) == (0, False, 1.0)
    assert told.strength == pytest.approx(10**-2.5)
    both = linear_probe(
        torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3), strengths=[1e-4, 1e-2]
    )
    assert both.strength == 1e-4  # of two in the middle, the weaker


def test_probe_of_more_features_than_images_needs_little_strength() -> None:
    features, labels = torch.randn(5, 9), torch.arange(5)
    assert linear_probe(features, labels, features, labels, strengths=[1e-18]).accuracy == 1


def test_correlated_features_need_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, test, _ = clouds(200, 5, 12, 3, apart=0.4)
    monkeypatch.setattr(probing, "_ITERATIONS", 40)
    assert next(probing._fits(train + 30 * train[:, :1], labels, test, [1e-3]))[1]


def test_probe_makes_no_graph_and_takes_features_of_inference_mode() -> None:
    train, labels, test, test_labels = clouds(40, 9, 5, 3)
    told = linear_probe(train, labels, test, test_labels)
    with torch.inference_mode():
        again = linear_probe(train.double(), labels, test.double(), test_labels)
    assert again.predictions.tolist() == told.predictions.tolist()
    assert not told.predictions.requires_grad


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_few_labels_are_a_share_of_each_class(share: float) -> None:
    labels = torch.cat([torch.full((n,), c) for c, n in ((0, 300), (2, 47), (5, 1), (3, 130))])
    labels = labels[torch.randperm(len(labels))]
    chosen = few_labels(labels, share, seed=3)
    wanted = {c: max(1, round(share * n)) for c, n in ((0, 300), (2, 47), (5, 1), (3, 130))}
    assert Counter(labels[chosen].tolist()) == wanted
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert set(chosen.tolist()) <= set(few_labels(labels, 1.0, seed=3).tolist())
    assert set(few_labels(labels, share / 2, seed=3).tolist()) <= set(chosen.tolist())
    assert chosen.tolist() == few_labels(labels, share, seed=3).tolist()
    if share < 1:
        assert chosen.tolist() != few_labels(labels, share, seed=4).tolist()


def rank_by_svd(features: Tensor) -> float:
    sigma = torch.linalg.svdvals(features.double())
    p = sigma / sigma.sum() + 1e-7
    return math.exp(-sum(x * math.log(x) for x in p.tolist()))


@pytest.mark.parametrize(("n", "width"), [(37, 12), (9, 31), (20, 20)])
def test_rank_is_that_of_the_singular_values(
    n: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.randn(n, width) * torch.logspace(0, -4, width) + 0.3  # not centred
    expected = rank_by_svd(features)
    assert 1.05 < expected < 0.8 * min(n, width)
    assert rank_me(features) == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(probing, "_BLOCK", 50)
    assert rank_me(features) == pytest.approx(expected, rel=1e-6)
    assert rank_me(features[torch.randperm(n)] * 1e-12) == pytest.approx(expected, rel=1e-6)
    assert rank_me(features - features.mean(0)) != pytest.approx(expected, rel=1e-2)


def test_rank_of_closed_forms() -> None:
    assert rank_me(torch.eye(7).repeat(3, 1) * 5) == pytest.approx(7, rel=1e-5)
    assert rank_me(torch.eye(3, 11)) == pytest.approx(3, rel=1e-5)
    assert rank_me(torch.randn(13, 1) @ torch.randn(1, 6)) == pytest.approx(1, abs=1e-4)
    assert rank_me(torch.zeros(5, 3)) == pytest.approx(1, abs=1e-4)
    # σ = 3, 1: the entropy of (3/4, 1/4).
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert rank_me(torch.tensor([[3.0, 0], [0, 0], [0, -1.0]])) == pytest.approx(
        math.exp(entropy), rel=1e-5
    )


@pytest.mark.parametrize(("correct", "total"), [(0, 5), (5, 5), (7, 19), (9000, 10000)])
def test_interval_holds_the_shares_that_the_count_does_not_refute(correct: int, total: int) -> None:
    low, high = accuracy_interval(correct, total)
    share = correct / total
    assert 0 <= low <= share <= high <= 1
    for end in {low, high} - {0.0, 1.0}:  # its own standard error, 1.96 times
        assert abs(share - end) == pytest.approx(
            1.959964 * math.sqrt(end * (1 - end) / total), rel=1e-6
        )


def test_interval_of_a_textbook() -> None:
    # Newcombe 1998, Table I, method 3: 81 of 263, 15 of 148, 0 of 20.
    for count, total, ends in (
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
    ):
        assert accuracy_interval(count, total) == pytest.approx(ends, abs=5e-5)


def test_pixels_of_digits_tell_them_apart() -> None:
    store = Digits().load()
    pixels = torch.from_numpy(store.pixels).float().reshape(len(store), 32, 32)
    features = F.avg_pool2d(pixels, 4).flatten(1)
    assert store.labels is not None
    labels = torch.from_numpy(store.labels)
    tested = torch.arange(len(labels)) % 5 == 2
    data = features[~tested], labels[~tested], features[tested], labels[tested]
    assert knn_accuracy(*data).accuracy > 0.95
    probe = linear_probe(*data, strengths=(1e-1, 1e-2, 1e-3))
    assert probe.accuracy > 0.9
    assert probe.converged
    few = few_labels(data[1], 0.1, seed=1)
    few_data = data[0][few], data[1][few], data[2], data[3]
    assert 0.7 < knn_accuracy(*few_data).accuracy < knn_accuracy(*data).accuracy
    assert 0.7 < linear_probe(*few_data, strengths=(1e-1, 1e-2)).accuracy < probe.accuracy
    assert 10 < rank_me(features) < 64


def test_what_cannot_be_judged_is_told_in_a_line() -> None:
    train, labels, test, test_labels = clouds(12, 7, 3, 2)
    broken = test.clone()
    broken[2, 1] = math.nan
    for judge in (knn_accuracy, linear_probe):
        with pytest.raises(ValueError, match="test: some features are not finite"):
            judge(train, labels, broken, test_labels)
        with pytest.raises(ValueError, match=r"train: features \(12, 3\), labels \(7,\)"):
            judge(train, test_labels, test, test_labels)
        with pytest.raises(ValueError, match="features: 3 of train, 2 of test"):
            judge(train, labels, test[:, :2], test_labels)
    with pytest.raises(ValueError, match="k: 0 neighbours"):
        knn_accuracy(train, labels, test, test_labels, k=0)
    with pytest.raises(ValueError, match="all above 0"):
        linear_probe(train, labels, test, test_labels, strengths=[1.0, 0.0])
    with pytest.raises(ValueError, match="finite numbers"):
        rank_me(broken)
    with pytest.raises(ValueError, match="share: 0"):
        few_labels(labels, 0, seed=0)
    for counts in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no interval"):
            accuracy_interval(*counts)
