"""What frozen features are worth: kNN, a linear probe, few labels, and RankMe without labels.

N training and M test images, D features, K classes; labels are int64. All runs on the features'
device, without a graph, and nothing is drawn but by `randomness`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_nas.randomness import Purpose, derive_key, permutation

STRENGTHS = tuple(10 ** (-half / 2) for half in range(11))  # of L2: 1 … 1e-5
_TEMPERATURE = 0.07  # Wu et al. 2018, Sec. 3.4
_BLOCK = 1 << 22  # numbers held at once
_EQUAL = 1e-6  # similarities that float32 cannot tell apart; relative deviation of a dead feature
_TOLERANCE = 3e-6  # of the largest scaled derivative; float64 losses tell no less than 1e-7
_ITERATIONS = 1000  # for one strength
_MANY = 500  # held-out images that suffice to choose by


class Judged(NamedTuple):
    """Share of test images told right, and the class each was told to be: (M,), int64."""

    accuracy: float
    predictions: Tensor


class LinearProbe(NamedTuple):
    """`Judged`, and how it came about.

    Attributes:
        accuracy: see `Judged`.
        predictions: ...
        strength: the λ chosen.
        at_grid_end: the best λ may lie beyond the grid.
        converged: every fit reached its optimum.
        held_out: training images that λ was chosen on; 0: no class had two, so no choice.
    """

    accuracy: float
    predictions: Tensor
    strength: float
    at_grid_end: bool
    converged: bool
    held_out: int


def knn_accuracy(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20
) -> Judged:
    """Weighted kNN by cosine similarity s (Wu et al. 2018, Sec. 3.4), k as in DINO, Sec. 3.2.

    Each of the min(k, N) nearest training images votes exp(s / 0.07) for its class; the lower class
    wins a tie. Not stated there: images as near as the k-th all vote, so that the order of images
    does not matter, not even where features have collapsed; a zero vector has similarity 0 to all.

    Shapes:
        train (N, D), labels (N,), test (M, D), test_labels (M,).
    """
    _check(train, labels, test, test_labels)
    if k < 1:
        raise ValueError(f"k: {k} neighbours; use 1 or more")
    classes, members = labels.unique(return_inverse=True)
    votes = F.one_hot(members).float()  # (N, K)
    neighbours = F.normalize(train.float())
    predictions: list[Tensor] = []
    for rows in test.float().split(max(1, _BLOCK // len(train))):
        similarity = F.normalize(rows) @ neighbours.T  # (rows, N)
        last = similarity.topk(min(k, len(train))).values[:, -1:]
        weights = ((similarity - 1) / _TEMPERATURE).exp_()  # 1 at most
        weights[similarity < last - _EQUAL] = 0
        predictions.append(classes[(weights @ votes).argmax(1)])
    return _judged(torch.cat(predictions), test_labels)


def linear_probe(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearProbe:
    """Multinomial logistic regression on standardised features, λ chosen without test images.

    Minimises mean cross-entropy + λ/2 ‖W‖², the bias free. λ has the highest held-out accuracy (of
    equal ones, the middle); then all training images are fitted. Held out is a seeded tenth of each
    class, rounded up; where that makes less than 500 images, five folds are held out in turn. A
    class's only image never is.

    Shapes:
        train (N, D), labels (N,), test (M, D), test_labels (M,).
    """
    _check(train, labels, test, test_labels)
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"strengths: {list(strengths)}; at least one, all above 0")
    strengths = sorted(strengths, reverse=True)  # each fit starts from a stronger one's
    classes, members = labels.unique(return_inverse=True)
    right, held_out, has_converged = [0] * len(strengths), 0, True
    for held in _folds(members, derive_key(seed, Purpose.FOLD)):
        held_out += int(held.sum())
        fits = _fits(train[~held], members[~held], train[held], strengths)
        for i, (logits, converged) in enumerate(fits):
            right[i] += int((logits.argmax(1) == members[held]).sum())
            has_converged &= converged
    best = [i for i, count in enumerate(right) if count == max(right)]
    chosen = best[len(best) // 2]
    logits, converged = next(_fits(train, members, test, [strengths[chosen]]))
    return LinearProbe(
        *_judged(classes[logits.argmax(1)], test_labels),
        strength=strengths[chosen],
        at_grid_end=chosen in (0, len(strengths) - 1),
        converged=has_converged and converged,
        held_out=held_out,
    )


def few_labels(labels: Tensor, share: float, seed: int) -> Tensor:
    """Positions of a seeded share of each class, rounded, at least one image: sorted int64.

    With the same seed, a smaller share is a part of a larger one.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: {share} of the labels; use a number in (0, 1]")
    wanted = (labels.bincount().double() * share).round().clamp(min=1)
    places = _places(labels, derive_key(seed, Purpose.LABELLED))
    return (places < wanted[labels]).nonzero()[:, 0]


def rank_me(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, Eq. 1): exp of the entropy of p = σ / ‖σ‖₁ + 1e-7.

    σ are the min(N, D) singular values of the features, not centred, as there. They come from the
    smaller Gram matrix in float64, to about 1e-8 of the largest. All zeros give 1.
    """
    if features.ndim != 2 or not features.numel() or not features.isfinite().all():
        raise ValueError(f"features: {tuple(features.shape)}; (N, D) finite numbers are needed")
    tall = features if len(features) >= features.shape[1] else features.T
    gram = tall.new_zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for rows in tall.split(max(1, _BLOCK // tall.shape[1])):
        gram += rows.double().T @ rows.double()
    sigma = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = sigma / sigma.sum().clamp(min=torch.finfo(sigma.dtype).tiny) + 1e-7
    return math.exp(-(p * p.log()).sum().item())


def accuracy_interval(correct: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval: what other test images would give, not other training runs."""
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"{correct} of {total} images told right has no interval")
    z, share = 1.959964, correct / total
    centre = share + z**2 / (2 * total)
    reach = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    low, high = ((centre + side) / (1 + z**2 / total) for side in (-reach, reach))
    return max(0.0, low), min(1.0, high)


def _check(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> None:
    for name, features, classes in (("train", train, labels), ("test", test, test_labels)):
        if features.ndim != 2 or classes.shape != features.shape[:1] or not features.numel():
            raise ValueError(
                f"{name}: features {tuple(features.shape)}, labels {tuple(classes.shape)}; "
                "(N, D) and (N,) are needed, none 0"
            )
        if not features.isfinite().all():
            raise ValueError(f"{name}: some features are not finite")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"features: {train.shape[1]} of train, {test.shape[1]} of test")


def _judged(predictions: Tensor, labels: Tensor) -> Judged:
    return Judged((predictions == labels).double().mean().item(), predictions)


def _places(labels: Tensor, key: int) -> Tensor:
    """Each image's place, from 0, in a random order of its class: (N,), int64."""
    order = permutation(len(labels), key, labels.device)
    order = order[labels[order].argsort(stable=True)]
    counts = labels.bincount()
    first = (counts.cumsum(0) - counts)[labels[order]]
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).to(first) - first)


def _folds(labels: Tensor, key: int) -> Iterator[Tensor]:
    """Which images are held out, (N,), bool: once, or in five turns."""
    places, is_divisible = _places(labels, key), labels.bincount()[labels] > 1
    tenth = (places % 10 == 0) & is_divisible
    fifths = [(places % 5 == i) & is_divisible for i in range(5)]
    return (fold for fold in ([tenth] if tenth.sum() >= _MANY else fifths) if fold.any())


def _fits(
    train: Tensor, labels: Tensor, test: Tensor, strengths: Sequence[float]
) -> Iterator[tuple[Tensor, bool]]:
    """The test images' logits (M, K), and whether the fit converged, for each strength.

    The features are turned to their principal axes, which leaves ‖W‖ alone, so that each weight can
    be scaled by its curvature at W = 0: correlated features would take more steps without that.
    """
    deviation, mean = torch.std_mean(train.double(), 0, correction=0)
    unit = torch.where(deviation > _EQUAL * mean.abs(), 1 / deviation, 0)  # dead ones count nothing
    x, x_test = ((part.double() - mean) * unit for part in (train, test))
    variance, axes = torch.linalg.eigh(x.T @ x / len(x))
    # The bias is the weight of a last feature, 1.
    x, x_test = (F.pad(part @ axes, (0, 1), value=1.0) for part in (x, x_test))
    curvature = F.pad(variance.clamp(min=0), (0, 1), value=1.0)[:, None]
    is_penalised = F.pad(torch.ones_like(variance), (0, 1))[:, None]
    weight = x.new_zeros(x.shape[1], int(labels.max()) + 1)  # (D + 1, K)
    for strength in strengths:
        penalty = strength * is_penalised
        scale = (curvature / weight.shape[1] + penalty).rsqrt()
        weight, converged = _optimum(x, labels, weight, penalty, scale)
        yield x_test @ weight, converged


def _optimum(
    x: Tensor, labels: Tensor, weight: Tensor, penalty: Tensor, scale: Tensor
) -> tuple[Tensor, bool]:
    """The best W (D + 1, K), from a first one and by L-BFGS, and whether its gradient is 0."""
    rows = torch.arange(len(x), device=x.device)
    scaled = weight / scale

    def closure() -> Tensor:
        weight = scale * scaled
        log_p = (x @ weight).log_softmax(1)
        loss = (penalty * weight**2).sum() / 2 - log_p[rows, labels].mean()
        error = log_p.exp_()
        error[rows, labels] -= 1
        scaled.grad = scale * (x.T @ error / len(x) + penalty * weight)
        return loss

    solver = torch.optim.LBFGS(
        [scaled],
        max_iter=_ITERATIONS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=0.0,  # the gradient alone decides
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    solver.step(closure)  # pyright: ignore[reportArgumentType] - a tensor is what it takes
    closure()
    assert scaled.grad is not None
    return scale * scaled, bool(scaled.grad.abs().max() <= _TOLERANCE)
