"""What a method itself reads and writes of the parameters that DeepSpeed trains.

An engine may keep fp32 masters of them, whole (16 bits without ZeRO) or divided among the workers
(ZeRO 1 and 2). A value that is written to the parameter alone is then overwritten by the next step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def full_gradient(engine: Any, parameter: nn.Parameter) -> torch.Tensor:
    """The gradient of the step that has just run backward, in float32 at least.

    Averaged over workers, not yet clipped, without the loss scale. A collective where gradients
    are divided: every worker asks for the same gradients in the same order.
    """
    from deepspeed.utils import safe_get_full_grad

    gradient: torch.Tensor | None = safe_get_full_grad(parameter)
    if gradient is None:  # nothing of this step's loss has read the parameter
        gradient = torch.zeros_like(parameter)
    scale = float(engine.optimizer.loss_scale) if engine.fp16_enabled() else 1.0
    return at_least_float(gradient).detach() / scale


@torch.no_grad()
def rewrite(
    engine: Any, parameter: nn.Parameter, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Put `change` of a parameter's value in its place, in the engine's master of it too.

    A collective where masters are divided, as `full_gradient` is.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

    value = safe_get_full_fp32_param(parameter)
    if value is not None:
        value = change(value)
        safe_set_full_fp32_param(parameter, value)
    else:
        master = _whole_master(engine, parameter)
        value = change(master)
        master.copy_(value)
    parameter.copy_(value)


def _whole_master(engine: Any, parameter: nn.Parameter) -> torch.Tensor:
    """The fp32 master of a parameter that is kept whole; the parameter itself where it has none."""
    optimizer = getattr(engine, "optimizer", None)
    for halves, masters in zip(
        getattr(optimizer, "fp16_groups", ()), getattr(optimizer, "fp32_groups", ()), strict=False
    ):
        for half, master in zip(halves, masters, strict=True):
            if half is parameter:
                found: torch.Tensor = master.detach()
                return found
    return parameter.detach()


def at_least_float(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 where it has 16 bits, else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
