"""MAE-NAS: differentiable architecture search whose loss is masked image reconstruction."""

__version__ = "0.1.0"
