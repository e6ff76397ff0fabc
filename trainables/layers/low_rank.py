"""A frozen linear layer with the low-rank updates of an adapter, with dropout on their input.

On a CPU layer and updates are one autograd function written by hand. What costs there beside the
arithmetic is random numbers and passes over large activations, so the function draws the entries to
drop by the gaps between them (trainables/layers/dropout.py), adds each update to output and
gradient where they lie, and neither makes nor keeps a copy of the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from trainables.layers.dropout import dropped_entries


class LowRank(NamedTuple):
    """The update scale * dropout(x) A^T B^T of x [..., in]: A [rank, in], B [out, rank].

    Every entry of x is dropped with probability `dropout` on its own, and the others are scaled by
    1 / (1 - dropout).
    """

    A: torch.Tensor
    B: torch.Tensor
    scale: float = 1.0
    dropout: float = 0.0
    trained: int | None = None

    def parts(self) -> list[LowRank]:
        """The ranks that train, and those that are frozen and read x as it is."""
        A, B, scale, dropout, trained = self
        if trained is None:
            return [self]
        frozen = LowRank(A[trained:], B[:, trained:], scale)
        return [LowRank(A[:trained], B[:, :trained], scale, dropout), frozen][trained == 0 :]


def add_low_rank(y: torch.Tensor, x: torch.Tensor, update: LowRank) -> torch.Tensor:
    """y [..., out] with the update for x [..., in], by torch's own operations."""
    if update.trained is not None:
        for part in update.parts():
            y = add_low_rank(y, x, part)
        return y
    A, B, scale, dropout, _ = update
    dropped = nn.functional.dropout(x, dropout, training=dropout > 0)
    added = nn.functional.linear(nn.functional.linear(dropped.to(A.dtype), A), B * scale)
    return y + added.to(y.dtype)


def linear_with_update(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, update: LowRank
) -> torch.Tensor:
    """x W^T + b of a frozen layer with an update: x [..., in], W [out, in], y [..., out]."""
    return linear_with_updates(x, weight, bias, update.parts())


def linear_with_updates(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, updates: Sequence[LowRank]
) -> torch.Tensor:
    """x W^T + b of a frozen layer with all updates: x [..., in], W [out, in], y [..., out].

    Written by hand where all of it lies on a CPU in one dtype.
    """
    factors = [factor for update in updates for factor in (update.A, update.B)]
    layer = (weight,) if bias is None else (weight, bias)
    frozen = not any(each.requires_grad for each in layer)
    alike = all(each.is_cpu and each.dtype == x.dtype for each in (x, *layer, *factors))
    if updates and frozen and alike and not torch.is_autocast_enabled("cpu"):
        how = [(update.scale, update.dropout) for update in updates]
        y = _LinearWithUpdates.apply(x.reshape(-1, x.shape[-1]), weight, bias, how, *factors)
        return y.view(*x.shape[:-1], weight.shape[0])  # type: ignore[no-any-return]
    y = nn.functional.linear(x, weight, bias)
    for update in updates:
        y = add_low_rank(y, x, update)
    return y


class _LinearWithUpdates(torch.autograd.Function):
    """On x [n, in]; `how` holds (scale, dropout) of every update, `factors` its A and its B.

    The small products come first and the layer's own is added to them, forward and backward: that
    saves a pass over output and gradient, for the bias is a small product too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        how: Sequence[tuple[float, float]],
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        x = x.contiguous()
        ctx.scales = [scale / (1 - dropout) for scale, dropout in how]
        ctx.dropped = [_Dropped.draw(x, p) if p > 0 else None for _, p in how]
        inner = []
        for A, dropped in zip(factors[::2], ctx.dropped, strict=True):
            with _without(x, dropped):
                inner.append(x @ A.T)
        outer = [B * scale for B, scale in zip(factors[1::2], ctx.scales, strict=True)]
        read = x if any(ctx.needs_input_grad[4:]) else None
        ctx.save_for_backward(weight, read, *inner, *factors)
        if bias is not None:
            inner.append(x.new_ones(len(x), 1))
            outer.append(bias[:, None])
        y = torch.cat(inner, 1) @ torch.cat(outer, 1).T
        return y.addmm_(x, weight.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        number = len(ctx.scales)
        weight, x, *saved = ctx.saved_tensors
        inner, A, B = saved[:number], saved[number::2], saved[number + 1 :: 2]
        needs_x, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        grad = grad.contiguous()  # once for all products that read it
        grad_x: torch.Tensor | None = None
        grads: list[torch.Tensor | None] = []
        for i, (scale, dropped) in enumerate(zip(ctx.scales, ctx.dropped, strict=True)):
            needs_A, needs_B = needs[2 * i : 2 * i + 2]
            grad_A = grad_B = None
            if needs_B:  # in this order the long sides are read as they lie
                grad_B = (inner[i].T @ grad).mul_(scale).T
            if needs_x or needs_A:
                grad_inner = (grad @ B[i]).mul_(scale)
            if needs_A:
                with _without(x, dropped):
                    grad_A = grad_inner.T @ x
            if needs_x:
                part = grad_inner @ A[i]
                if dropped is not None:
                    part.view(-1).index_fill_(0, dropped.entries, 0.0)
                grad_x = part if grad_x is None else grad_x.add_(part)
            grads += [grad_A, grad_B]
        if grad_x is not None:
            grad_x.addmm_(grad, weight)
        return grad_x, None, None, None, *grads


class _Dropped(NamedTuple):
    """The entries of an input that an update does not read, and their values."""

    entries: torch.Tensor
    values: torch.Tensor

    @classmethod
    def draw(cls, x: torch.Tensor, probability: float) -> _Dropped:
        """Of every entry of x with that probability."""
        entries = dropped_entries(x.numel(), probability)
        return cls(entries, x.view(-1).index_select(0, entries))


@contextmanager
def _without(x: torch.Tensor, dropped: _Dropped | None) -> Iterator[None]:
    """Have the dropped entries of x be zero inside the context, and what they were after it.

    In place, for a copy of x costs more than the product it is for. Autograd is not told: nothing
    reads x before it is the same again.
    """
    if dropped is None:
        yield
        return
    flat = x.data.view(-1)
    flat.index_fill_(0, dropped.entries, 0.0)
    try:
        yield
    finally:
        flat.index_copy_(0, dropped.entries, dropped.values)
