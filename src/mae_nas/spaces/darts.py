"""S0, the DARTS space (DARTS, Sec. 3.1), and S1-S4, its hard subspaces (RobustDARTS, Sec. 3)."""

from collections.abc import Sequence

from mae_nas.spaces.base import SearchSpace

_SKIP, _MAX, _AVG = "skip_connect", "max_pool_3x3", "avg_pool_3x3"
_SEP3, _DIL3, _DIL5 = "sep_conv_3x3", "dil_conv_3x3", "dil_conv_5x5"


class _UniformSpace(SearchSpace):
    """The same candidates on every edge of both kinds of cell."""

    candidates: Sequence[str]

    def primitives(self, kind: str) -> Sequence[Sequence[str]]:  # noqa: ARG002
        return [self.candidates] * len(self.edges)


class S0(_UniformSpace):
    """The full DARTS space: eight candidates, in the order of the original code."""

    candidates = (
        "none",
        _MAX,
        _AVG,
        _SKIP,
        _SEP3,
        "sep_conv_5x5",
        _DIL3,
        _DIL5,
    )


class S1(SearchSpace):
    """Two candidates per edge, pre-selected from S0 and different on each (RobustDARTS, Sec. 3)."""

    _normal = (
        (_SKIP, _DIL3),
        (_SKIP, _DIL5),
        (_SKIP, _DIL5),
        (_SKIP, _SEP3),
        (_SKIP, _DIL3),
        (_MAX, _SKIP),
        (_SKIP, _SEP3),
        (_SKIP, _SEP3),
        (_SKIP, _DIL3),
        (_SKIP, _SEP3),
        (_MAX, _SKIP),
        (_SKIP, _DIL3),
        (_DIL3, _DIL5),
        (_DIL3, _DIL5),
    )
    _reduce = (
        (_MAX, _AVG),
        (_MAX, _DIL3),
        (_MAX, _AVG),
        (_MAX, _AVG),
        (_SKIP, _DIL5),
        (_MAX, _AVG),
        (_MAX, _SEP3),
        (_SKIP, _DIL3),
        (_SKIP, _DIL5),
        (_MAX, _AVG),
        (_MAX, _AVG),
        (_SKIP, _DIL5),
        (_SKIP, _DIL5),
        (_SKIP, _DIL5),
    )

    def primitives(self, kind: str) -> Sequence[Sequence[str]]:
        return self._reduce if kind == "reduce" else self._normal


class S2(_UniformSpace):
    """Skip or 3 × 3 separable convolution."""

    candidates = (_SKIP, _SEP3)


class S3(_UniformSpace):
    """S2 and `none`."""

    candidates = ("none", _SKIP, _SEP3)


class S4(_UniformSpace):
    """Noise or 3 × 3 separable convolution: a search that learns must drop the noise."""

    candidates = ("noise", _SEP3)
