"""The low-rank product of an adapter, added to a layer's output, with dropout on its input.

On a CPU the product is written by hand, for there dropout's random numbers and the passes over
large activations cost more than the arithmetic: dropped entries are drawn by the gaps between them,
which takes one random number for each that is dropped in place of one for each that is not, and the
update is added to the layer's output where it lies.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

RARE = 0.25
"""Up to this share drawing the gaps between dropped entries is faster than drawing every entry."""


def add_low_rank(
    y: torch.Tensor, x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, dropout: float = 0.0
) -> torch.Tensor:
    """y + dropout(x) A^T B^T for y [..., out], x [..., in], A [rank, in], B [out, rank].

    `y` may be written over. Every entry of x is dropped with probability `dropout` on its own, and
    the others are scaled by 1 / (1 - dropout).
    """
    if y.device.type == "cpu" and y.dtype == x.dtype == A.dtype == B.dtype and y.is_contiguous():
        return _AddLowRank.apply(y, x, A, B, dropout)  # type: ignore[no-any-return]
    dropped = nn.functional.dropout(x, dropout, training=dropout > 0)
    added = nn.functional.linear(nn.functional.linear(dropped.to(A.dtype), A), B)
    return y + added.to(y.dtype)


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, dropout: float
    ) -> torch.Tensor:
        flat, dropped = x.reshape(-1, x.shape[-1]), None
        if dropout > 0:
            dropped = dropped_entries(flat.numel(), dropout)
            flat = flat.clone(memory_format=torch.contiguous_format)
            flat.view(-1).index_fill_(0, dropped, 0.0)
        inner = flat @ A.T
        ctx.scale = 1 / (1 - dropout)
        y.view(-1, y.shape[-1]).addmm_(inner, B.T, alpha=ctx.scale)
        ctx.save_for_backward(flat, inner, A, B, dropped)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, inner, A, B, dropped = ctx.saved_tensors
        _, needs_x, needs_A, needs_B, _ = ctx.needs_input_grad
        grad = grad.contiguous()  # once for this product and the layer's own
        rows = grad.view(-1, grad.shape[-1])
        grad_x = grad_A = grad_B = None
        if needs_B:  # in this order the long sides are read as they lie
            grad_B = (inner.T @ rows).T.contiguous().mul_(ctx.scale)
        if needs_x or needs_A:
            grad_inner = (rows @ B).mul_(ctx.scale)
            if needs_A:
                grad_A = grad_inner.T @ flat
            if needs_x:
                grad_x = grad_inner @ A
                if dropped is not None:
                    grad_x.view(-1).index_fill_(0, dropped, 0.0)
                grad_x = grad_x.view(*grad.shape[:-1], A.shape[1])
        return grad, grad_x, grad_A, grad_B, None


def dropped_entries(number: int, probability: float) -> torch.Tensor:
    """Indices, ascending, of the entries of `number` that are dropped, each with `probability`.

    From torch's generator of the CPU. Between two dropped entries lies a geometric number of
    others, which is an exponential one rounded down.
    """
    if probability > RARE:
        return torch.nonzero(torch.rand(number) < probability).view(-1)
    rate = -math.log1p(-probability)
    found: list[torch.Tensor] = []
    last = -1
    while last < number:
        expected = (number - last) * probability
        draws = int(expected + 6 * math.sqrt(expected)) + 16
        # an exponential by its inverse; torch's own exponential_ takes four times as long
        gaps = torch.rand(draws).neg_().log1p_().mul_(-1 / rate).long().add_(1)
        found.append(gaps.cumsum_(0).add_(last))
        last = int(found[-1][-1])
    entries = torch.cat(found) if len(found) > 1 else found[0]
    return entries[: int(torch.searchsorted(entries, number))]
