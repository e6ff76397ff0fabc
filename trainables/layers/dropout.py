"""Dropout that draws one random number for each entry that it drops, on a CPU.

torch draws one for every entry there, which takes longer than most of what is done with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from trainables.layers.stand_in import StandIn

RARE = 0.25
"""Up to this share drawing the gaps between dropped entries is faster than drawing every entry."""


def dropped_entries(number: int, probability: float) -> torch.Tensor:
    """Indices, ascending, of the entries of `number` that are dropped, each with `probability`.

    From torch's generator of the CPU. Between two dropped entries lies a geometric number of
    others, which is an exponential one rounded down.
    """
    if probability > RARE:
        return torch.nonzero(torch.rand(number) < probability).view(-1)
    one, rate = torch.ones(()), -math.log1p(-probability)
    found: list[torch.Tensor] = []
    last = -1
    while last < number:
        expected = (number - last) * probability
        draws = int(expected + 6 * math.sqrt(expected)) + 16
        # an exponential by its inverse; torch's own exponential_ takes four times as long
        gaps = torch.add(one, torch.rand(draws).neg_().log1p_(), alpha=-1 / rate).long()
        found.append(gaps.cumsum_(0).add_(last))
        last = int(found[-1][-1])
    entries = torch.cat(found) if len(found) > 1 else found[0]
    return entries[: int(torch.searchsorted(entries, number))]


@contextmanager
def quick_dropout(model: nn.Module) -> Iterator[None]:
    """Have the dropout layers of a model drop by the gaps between entries, where that is faster.

    Each entry is dropped with the layer's probability on its own, as by the layer itself, but from
    other random numbers. Dropout that a model applies without such a layer is left as it is.
    """
    stand_ins = [
        StandIn(layer, _forward)
        for layer in model.modules()
        if type(layer) is nn.Dropout and not layer.inplace and 0 < layer.p <= RARE
        if "forward" not in vars(layer)
    ]
    try:
        yield
    finally:
        for each in stand_ins:
            each.remove()


def _forward(layer: nn.Dropout, x: torch.Tensor) -> torch.Tensor:
    if layer.training and x.is_cpu:
        return _Dropout.apply(x, layer.p)  # type: ignore[no-any-return]
    return nn.Dropout.forward(layer, x)


class _Dropout(torch.autograd.Function):
    """x with every entry dropped with a probability and the others scaled by 1 / (1 - it)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, probability: float) -> torch.Tensor:
        ctx.scale = 1 / (1 - probability)
        ctx.entries = dropped_entries(x.numel(), probability)
        return _dropped(x, ctx.entries, ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _dropped(grad, ctx.entries, ctx.scale), None


def _dropped(x: torch.Tensor, entries: torch.Tensor, scale: float) -> torch.Tensor:
    y = x.contiguous() * scale
    return y.put_(entries, y.new_zeros(len(entries)))
