"""Weights of a base as they would be in a plain one: neither divided nor packed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from trainables.bases.quantization import is_packed, unpacked
from trainables.engine.divided import gathered


@contextmanager
def whole_weights(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """While open, the linear layers of these names have weights that gradients can be taken of.

    Those of a base that is divided among workers are gathered, by all workers at once; packed ones
    are unpacked into Parameters that stand in for them. Others are left alone.
    """
    layers = list({id(layer): layer for layer in map(model.get_submodule, names)}.values())
    with ExitStack() as opened:
        opened.enter_context(gathered([_weight(layer) for layer in layers]))
        for layer in layers:
            if is_packed(_weight(layer)):
                opened.enter_context(_unpacked_in(layer))
        yield


def weight_of_layer(model: nn.Module, name: str) -> torch.Tensor:
    """The weight of a linear layer as [out, in], whole and in floats; by all workers at once."""
    layer = model.get_submodule(name)
    own = _weight(layer)
    with whole_weights(model, [name]):
        weight = _weight(layer).detach()
        if weight.numel() != own.numel():  # what was gathered goes when the context is left
            weight = weight.clone()
    return weight.T if isinstance(layer, Conv1D) else weight


def _weight(layer: nn.Module) -> nn.Parameter:
    weight: Any = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


@contextmanager
def _unpacked_in(layer: nn.Module) -> Iterator[None]:
    packed, forward = _weight(layer), vars(layer).get("forward")
    layer.weight = nn.Parameter(unpacked(packed), requires_grad=False)
    layer.forward = MethodType(nn.Linear.forward, layer)
    try:
        yield
    finally:
        layer.weight = packed
        del layer.forward
        if forward is not None:
            layer.forward = forward
