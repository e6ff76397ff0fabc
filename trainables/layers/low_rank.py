"""A frozen linear layer with the low-rank updates of an adapter, with dropout on their input.

On a CPU layer and updates are one autograd function written by hand. What costs there beside the
arithmetic is random numbers and passes over large activations, so the function draws the entries to
drop by the gaps between them (trainables/layers/dropout.py), adds each update to output and
gradient where they lie, and neither makes nor keeps a copy of the input. Its small products are
compiled (trainables/layers/compiled.py) where they can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from trainables.layers import compiled, small_products
from trainables.layers.dropout import dropped_entries
from trainables.layers.small_products import LowRank


def add_low_rank(y: torch.Tensor, x: torch.Tensor, update: LowRank) -> torch.Tensor:
    """y [..., out] with the update for x [..., in], by torch's own operations."""
    A, B, scale, dropout = update
    dropped = nn.functional.dropout(x, dropout, training=dropout > 0)
    added = nn.functional.linear(nn.functional.linear(dropped.to(A.dtype), A), B * scale)
    return y + added.to(y.dtype)


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
    saves a pass over output and gradient, for the bias is added with the small products.
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
        ranks = sum(len(A) for A in factors[::2])
        ctx.small = compiled if compiled.takes(x, ranks) else small_products
        ctx.how = how
        ctx.dropped = [dropped_entries(x.numel(), p) if p > 0 else None for _, p in how]
        updates = _updates(how, factors)
        y, inner = ctx.small.forward(x, len(weight), bias, updates, ctx.dropped)
        read = x if any(ctx.needs_input_grad[4:]) else None
        ctx.save_for_backward(weight, read, inner, *factors)
        return y.addmm_(x, weight.T)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, x, inner, *factors = ctx.saved_tensors
        grad = grad.contiguous()  # once for all products that read it
        needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[4:])
        updates = _updates(ctx.how, factors)
        grad_x, grads = ctx.small.backward(grad, x, inner, updates, ctx.dropped, needed)
        if grad_x is not None:
            grad_x.addmm_(grad, weight)
        return grad_x, None, None, None, *grads


def _updates(how: Sequence[tuple[float, float]], factors: Sequence[torch.Tensor]) -> list[LowRank]:
    pairs = zip(factors[::2], factors[1::2], how, strict=True)
    return [LowRank(A, B, scale, dropout) for A, B, (scale, dropout) in pairs]
