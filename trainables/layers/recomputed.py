"""Activation checkpointing: a layer keeps what it reads and is computed again for its gradients.

It is torch's own (torch.utils.checkpoint) on the layers that transformers marks for it. Its own
switch checks that a layer is in training mode, which turns on dropout that a layer applies itself;
a profile has the base in evaluation mode.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from trainables.layers.stand_in import StandIn

_state = threading.local()  # autograd computes layers again in threads of its own


def repeatable_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model that can be computed again, none inside another; none where its family
    does not know of it."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        return []
    marked = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    outer = {
        id(layer)
        for layer in marked
        for inner in layer.modules()
        if inner is not layer and isinstance(inner, GradientCheckpointingLayer)
    }
    return [layer for layer in marked if id(layer) not in outer]


@contextmanager
def recomputed(model: nn.Module, on: bool) -> Iterator[None]:
    """Have the layers of a model keep their inputs alone while it is `on`.

    Losses and gradients are the same: what is drawn the second time is what was drawn the first.
    """
    layers = repeatable_layers(model) if on else []
    stand_ins = [StandIn(layer, _forward) for layer in layers]
    try:
        yield
    finally:
        for each in stand_ins:
            each.remove()


def is_again() -> bool:
    """Whether what this thread computes is a layer's second time."""
    return getattr(_state, "again", False)


def _forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    run = partial(type(layer).forward, layer, **kwargs)
    if not torch.is_grad_enabled():
        return run(*args)
    return checkpoint(run, *args, use_reentrant=False, context_fn=_contexts)


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _again()


@contextmanager
def _again() -> Iterator[None]:
    _state.again = True
    try:
        yield
    finally:
        _state.again = False
