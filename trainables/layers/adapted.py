"""The adapted layers of a base: they compute their updates themselves, together where they can."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from trainables.layers.low_rank import (
    LowRank,
    SharedInput,
    add_low_rank,
    by_hand,
    is_like,
    linear_with_update,
)
from trainables.layers.stand_in import Removable, StandIn, changed, named_layers

Update = Callable[[], LowRank | None]
"""The update of a layer as it is now; None where there is none."""

READ_ONE_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("gate_proj", "up_proj"),
    ("wi_0", "wi_1"),
    ("w1", "w3"),
)
"""Layers of one parent that are likely to read one input, the first of them called first.

Only a guess, and none that must be right: who reads what is seen when a layer is called. It is not
learned from what layers have read, for then a step would depend on the steps before it, and the
second forward pass of activation checkpointing would differ from the first.
"""


def update_layers(
    model: nn.Module, updates: Iterable[tuple[Sequence[str], Update]]
) -> list[Removable]:
    """Have the layers of each of the groups of names give their output with that update, each layer
    once.

    Plain linear layers are computed with it. Any other has it added to what it gives. Layers that
    read one input (READ_ONE_INPUT) and are called one after another share the products with it and
    the draw of its dropped entries, each of which is dropped with its probability on its own.
    """
    readers: dict[str, _Reader] = {}
    current = _Current()
    handles: list[Removable] = [
        model.register_forward_pre_hook(current.forget),
        model.register_forward_hook(current.forget),
    ]
    for names, update in updates:
        for name, layer in named_layers(model, names).items():
            if type(layer) in (nn.Linear, Conv1D) and "forward" not in vars(layer):
                readers[name] = reader = _Reader(name, update)
                handles.append(StandIn(layer, partial(_forward, current, reader)))
            else:
                handles.append(changed(layer, partial(_added, update)))
    for name, reader in readers.items():
        own = name.rpartition(".")[2]
        parent = name.removesuffix(own)
        for alike in READ_ONE_INPUT:
            if own in alike:
                after = (parent + each for each in alike[alike.index(own) + 1 :])
                reader.next = [readers[each] for each in after if each in readers]
    return handles


@dataclass(eq=False)
class _Reader:
    """A layer that reads an input, and those that are likely to read it next."""

    name: str
    update: Update
    next: list[_Reader] = field(default_factory=list)


@dataclass
class _Current:
    """The input that has been read last, while there are layers that are likely to read it next."""

    shared: SharedInput | None = None

    def forget(self, *_: object) -> None:
        """No pass of the model reads on where another has stopped."""
        self.shared = None


def _forward(
    current: _Current, reader: _Reader, own: nn.Linear | Conv1D, x: torch.Tensor
) -> torch.Tensor:
    weight = own.weight.T if isinstance(own, Conv1D) else own.weight
    shared = current.shared
    update = None if shared is None else shared.update_for(reader, x)
    if shared is None or update is None:
        current.shared = shared = None
        update = reader.update()
    if update is None or not by_hand(x, weight, own.bias, update):
        return linear_with_update(x, weight, own.bias, update)
    if shared is None:
        shared = SharedInput(x, {reader: update, **_alike(x, update, reader.next)})
    y = shared.layer(reader, weight, own.bias)
    current.shared = None if shared.is_done else shared
    return y


def _alike(x: torch.Tensor, update: LowRank, readers: Sequence[_Reader]) -> dict[Hashable, LowRank]:
    """The updates that can read x together with the first, by their readers."""
    found: dict[Hashable, LowRank] = {}
    for reader in readers:
        other = reader.update()
        if (
            other is not None
            and other.dropout == update.dropout
            and other.A.shape[1] == update.A.shape[1]
            and is_like(x, other.A)
            and is_like(x, other.B)
        ):
            found[reader] = other
    return found


def _added(update: Update, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    now = update()
    return y if now is None else add_low_rank(y, x, now)
