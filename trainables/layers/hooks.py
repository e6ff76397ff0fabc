"""What goes by in a base that is left as it is: gradients of its weights, inputs of its layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from spaces.target import TargetModule
from trainables.layers.recomputed import is_again

# Gradients of a float16 base would vanish below 6e-8; a power of two changes no digit of theirs.
FLOAT16_LOSS_SCALE = 1024.0


class Hooks:
    """Hooks and gradients that last as long as the context."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._weights: list[nn.Parameter] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for handle in self._handles:
            handle.remove()
        for weight in self._weights:
            weight.requires_grad_(False)
            weight.grad = None
        self._handles, self._weights = [], []

    def on_gradient(self, weight: nn.Parameter, use: Callable[[torch.Tensor], None]) -> None:
        """Have a weight's gradient computed, and `use` called with the weight that holds it."""
        weight.requires_grad_(True)
        self._weights.append(weight)
        self._handles.append(weight.register_post_accumulate_grad_hook(use))

    def on_input(self, layer: nn.Module, use: Callable[..., None]) -> None:
        """Have `use` called with a layer and its inputs before it runs, but not where it runs again
        for its gradients alone."""

        def once(*given: Any) -> None:
            if not is_again():
                use(*given)

        self._handles.append(layer.register_forward_pre_hook(once))


def weight_of(model: nn.Module, target: TargetModule) -> nn.Parameter:
    """The weight of a target module, as the base stores it."""
    return model.get_parameter(f"{target.names[0]}.weight")


def accumulated_in(dtype: torch.dtype) -> torch.dtype:
    """In what the gradients of a weight of `dtype` are summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32
