"""Functions that stand in for a layer's own forward, or change what it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""What a layer of input x [..., in] gives in place of its output y [..., out], which may be written
over."""

Whole = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""What a linear layer gives for its input x [..., in], its weight [out, in] and its bias [out]."""


def hook_layers(model: nn.Module, names: Sequence[str], change: Change) -> list[RemovableHandle]:
    """Change the output of every layer of these names, of each layer once.

    One layer may have several of the names.
    """
    return [_changed(layer, change) for layer in _layers(model, names)]


def _changed(layer: nn.Module, change: Change) -> RemovableHandle:
    return layer.register_forward_hook(lambda _layer, inputs, y: change(inputs[0], y))


class Removable(Protocol):
    """What takes away again what it was given for."""

    def remove(self) -> None:
        """Take it away."""


def stand_in(
    model: nn.Module, names: Sequence[str], whole: Whole, change: Change
) -> list[Removable]:
    """Have `whole` compute every plain linear layer of these names, each layer once.

    Any other layer has its output changed by `change`, which must come to the same.
    """

    def forward(own: nn.Linear | Conv1D, x: torch.Tensor) -> torch.Tensor:
        weight = own.weight.T if isinstance(own, Conv1D) else own.weight
        return whole(x, weight, own.bias)

    handles: list[Removable] = []
    for layer in _layers(model, names):
        if type(layer) in (nn.Linear, Conv1D) and "forward" not in vars(layer):
            handles.append(StandIn(layer, forward))
        else:
            handles.append(_changed(layer, change))
    return handles


class StandIn:
    """A forward (layer, x) -> output of a layer's own, for as long as it is not removed."""

    def __init__(self, layer: nn.Module, forward: Callable[..., torch.Tensor]) -> None:
        self._layer = layer
        layer.forward = MethodType(forward, layer)  # bound, so that a copy of the layer has its own

    def remove(self) -> None:
        del self._layer.forward


def _layers(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The layers of these names, each once."""
    return list({id(layer): layer for layer in map(model.get_submodule, names)}.values())
