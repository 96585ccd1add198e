"""Optimizers of w and of α, as the two steps need them: one kernel a step, rates on the device."""

import inspect
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import SGD, Optimizer

OptimizerMaker = Callable[..., Optimizer]
"""Makes an optimizer of parameters; takes the options of its class as keywords."""


def make_fused(make: OptimizerMaker, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """An optimizer that steps in one kernel where its class has one, else by grouped operations.

    A choice of `fused` or `foreach` that is bound in `make` stands.
    """
    known = inspect.signature(make).parameters
    bound = getattr(make, "keywords", {})
    if any(bound.get(name) is not None for name in ("fused", "foreach")):
        optimizer = make(parameters)
    elif "fused" in known and not (bound.get("dampening") or bound.get("differentiable")):
        optimizer = make(parameters, fused=True)
    elif "foreach" in known:
        optimizer = make(parameters, foreach=True)
    else:
        optimizer = make(parameters)
    _start_momentum(optimizer)
    return optimizer


def _start_momentum(optimizer: Optimizer) -> None:
    """Zeros for the momentum of fused SGD.

    By itself it starts from unwritten memory, which stays where a scaler skips the first step, and
    fails where a weight gets its first gradient later than others.
    """
    for group in optimizer.param_groups if isinstance(optimizer, SGD) else ():
        # With dampening d, the first step from zeros would be 1 − d times that of torch.
        if group["fused"] and group["momentum"] and not group["dampening"]:
            for weight in group["params"]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


def keep_rates_on(device: torch.device, optimizers: Iterable[Optimizer]) -> None:
    """Learning rates as tensors () on `device`: a captured step would keep a number's value."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        if group.get("fused"):  # the others read the tensor on the host
            # In float32, as torch's kernels read it.
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)


def check_unrollable(optimizer: Optimizer) -> None:
    """ValueError unless its step is the one that DARTS, Eq. 7 looks ahead by."""
    plain = isinstance(optimizer, SGD) and not (
        optimizer.defaults["nesterov"] or optimizer.defaults["dampening"]
    )
    if not plain:
        raise ValueError(
            "search.second_order: looks ahead by a step of SGD without nesterov or dampening; "
            "use search.weight_optimizer._target_=torch.optim.SGD or search.second_order=false"
        )
