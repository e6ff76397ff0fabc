"""Functions that stand in for a layer's own forward, or change what it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""What a layer of input x [..., in] gives in place of its output y [..., out], which may be written
over."""


def hook_layers(model: nn.Module, names: Sequence[str], change: Change) -> list[RemovableHandle]:
    """Change the output of every layer of these names, of each layer once.

    One layer may have several of the names.
    """
    return [changed(layer, change) for layer in named_layers(model, names).values()]


def changed(layer: nn.Module, change: Change) -> RemovableHandle:
    """Change the output of a layer."""
    return layer.register_forward_hook(lambda _layer, inputs, y: change(inputs[0], y))


class Removable(Protocol):
    """What takes away again what it was given for."""

    def remove(self) -> None:
        """Take it away."""


class StandIn:
    """A forward (layer, x) -> output of a layer's own, for as long as it is not removed."""

    def __init__(self, layer: nn.Module, forward: Callable[..., torch.Tensor]) -> None:
        self._layer = layer
        layer.forward = MethodType(forward, layer)  # bound, so that a copy of the layer has its own

    def remove(self) -> None:
        del self._layer.forward


def named_layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The layers of these names, each once, by the first of its own."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for name in names:
        layer = model.get_submodule(name)
        found.setdefault(id(layer), (name, layer))
    return dict(found.values())
