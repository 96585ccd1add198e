"""DARTS: the softmax relaxation (DARTS, Eq. 2)."""

from mae_nas.relaxations.base import Mixture, Relaxation


class DARTS(Relaxation):
    """ō_e(x) = Σ_k softmax(α_e)_k · o_k(x) (DARTS, Eq. 2)."""

    def mixture(self) -> dict[str, Mixture]:
        return {kind: Mixture(alpha.softmax(dim=-1)) for kind, alpha in self.alphas.items()}
