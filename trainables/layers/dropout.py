"""Dropout that costs less than torch's own: of a base's layers, and of an adapter's input.

On a CPU torch draws a random number for every entry, which takes longer than most of what is done
with them; here one is drawn for each entry that is dropped. On other devices the draw is one
launch, and what costs is to keep the mask: it is drawn again when it is needed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

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


class InputDropout(Protocol):
    """One draw of dropout on an input x [n, in] of products, made when x is first read."""

    scale: float
    """What the products of what is read are to be multiplied with."""

    def read(self, x: torch.Tensor) -> AbstractContextManager[torch.Tensor]:
        """x with entries dropped, inside the context; the same entries every time."""

    def add(
        self, grad_x: torch.Tensor, products: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        """Inside the context: add to the gradient of x, in place, what it gets by what was read,
        whose gradient is the sum of the products before `scale`."""


def input_dropout(device: torch.device, probability: float) -> InputDropout:
    """The way of a device."""
    return ByGaps(probability) if device.type == "cpu" else DrawnAgain(probability)


class ByGaps:
    """Entries by the gaps between them, which are kept.

    In x itself, for a copy of it costs more than the product it is for. Autograd is not told:
    nothing else reads x before it is the same again.
    """

    def __init__(self, probability: float) -> None:
        self._probability, self.scale = probability, 1 / (1 - probability)
        self._entries: torch.Tensor | None = None

    @contextmanager
    def read(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        flat = x.data.view(-1)
        if self._entries is None:
            self._entries = dropped_entries(x.numel(), self._probability)
            self._values = flat.index_select(0, self._entries)
        flat.index_fill_(0, self._entries, 0.0)
        try:
            yield x
        finally:
            flat.index_copy_(0, self._entries, self._values)

    def add(
        self, grad_x: torch.Tensor, products: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        assert self._entries is not None
        flat = grad_x.view(-1)
        kept = flat.index_select(0, self._entries)
        for left, right in products:
            grad_x.addmm_(left, right, alpha=self.scale)
        flat.index_copy_(0, self._entries, kept)


class DrawnAgain:
    """torch's own draw, kept as the state that the device's generator had before it.

    After a second draw the generator is where it was. The state is read and set without waiting for
    the device.
    """

    scale = 1.0

    def __init__(self, probability: float) -> None:
        self._probability = probability
        self._state: Any = None
        self._mask: torch.Tensor | None = None

    @contextmanager
    def read(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        current = _generator_state(x.device)
        if self._state is None:
            self._state = current
            dropped, self._mask = torch.native_dropout(x, self._probability, True)
        else:
            _set_generator_state(x.device, self._state)
            dropped, self._mask = torch.native_dropout(x, self._probability, True)
            _set_generator_state(x.device, current)
        try:
            yield dropped
        finally:
            self._mask = None

    def add(
        self, grad_x: torch.Tensor, products: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        assert self._mask is not None
        (left, right), *others = products
        part = left @ right
        for left, right in others:
            part.addmm_(left, right)
        grad_x.addcmul_(part, self._mask, value=1 / (1 - self._probability))


def _generator_state(device: torch.device) -> Any:
    if device.type == "cpu":
        return torch.get_rng_state()
    return torch.get_device_module(device).get_rng_state(device)


def _set_generator_state(device: torch.device, state: Any) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)
