"""The fold where rounding matters most."""

import torch

from mae_nas.masking import BatchNorm
from mae_nas.supernet.fold import Moments, Norms, PoolFold


def test_rounding_leaves_no_negative_variance() -> None:
    """Planes of one value, and pools of them: E[x²] − μ² may be below 0."""
    torch.manual_seed(0)
    values = 30 + 300 * torch.rand(1, 8)
    norms = [BatchNorm(8, affine=False)]
    moments = Moments(values, values.square() * (1 - 1e-6))
    fold = PoolFold(Norms(norms, 64), moments, torch.ones(1, 1))
    assert norms[0].running_var is not None
    assert (norms[0].running_var >= 0).all()
    assert fold.product.isfinite().all()
