"""What a network costs: parameters, multiply-adds, memory."""

import resource
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(module: nn.Module) -> int:
    """Trainable values in `module`."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def count_multiply_adds(run: Callable[[], Tensor | object]) -> int:
    """Multiply-adds of the convolutions and linear layers in one call of `run`.

    torch counts two operations for each; pools, norms and element-wise work count as nothing, the
    convention of most published figures.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def peak_memory(device: torch.device) -> int:
    """Most bytes held at once: on the device where torch knows, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024)
