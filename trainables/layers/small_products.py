"""The small products of low-rank updates by torch's operations, for any dtype.

trainables/layers/compiled.py has the same two functions for float32 and few ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch


class LowRank(NamedTuple):
    """The update scale * dropout(x) A^T B^T of x [..., in]: A [rank, in], B [out, rank].

    Every entry of x is dropped with probability `dropout` on its own, and the others are scaled by
    1 / (1 - dropout).
    """

    A: torch.Tensor
    B: torch.Tensor
    scale: float = 1.0
    dropout: float = 0.0

    @property
    def kept_scale(self) -> float:
        """The scale of the update on the entries of x that are not dropped."""
        return self.scale / (1 - self.dropout)


class Gradients(NamedTuple):
    """Of x [n, in], and of A and B of every update in turn; None for each that is not asked for."""

    x: torch.Tensor | None
    factors: list[torch.Tensor | None]


Dropped = Sequence[torch.Tensor | None]
"""For every update the ascending indices of the entries of x [n, in] that it does not read."""


def forward(
    x: torch.Tensor,
    out: int,
    bias: torch.Tensor | None,
    updates: Sequence[LowRank],
    dropped: Dropped,
) -> tuple[torch.Tensor, torch.Tensor]:
    """All updates and the bias for x [n, in]: y [n, out], and x A^T of the updates side by side."""
    inner = []
    for update, entries in zip(updates, dropped, strict=True):
        with _without(x, entries):
            inner.append(x @ update.A.T)
    outer = [update.B * update.kept_scale for update in updates]
    saved = torch.cat(inner, 1)
    if bias is not None:
        inner.append(x.new_ones(len(x), 1))
        outer.append(bias[:, None])
    return torch.cat(inner, 1) @ torch.cat(outer, 1).T, saved


def backward(
    grad: torch.Tensor,
    x: torch.Tensor | None,
    inner: torch.Tensor,
    updates: Sequence[LowRank],
    dropped: Dropped,
    needed: Sequence[bool],
) -> Gradients:
    """Gradients for that of y [n, out] and what the forward read and gave.

    `needed` says for x, then for A and B of every update, whether its gradient is asked for; x may
    be None where only its own is.
    """
    grad_x: torch.Tensor | None = None
    grads: list[torch.Tensor | None] = []
    columns = inner.split([len(update.A) for update in updates], 1)
    for i, (update, entries) in enumerate(zip(updates, dropped, strict=True)):
        needs_A, needs_B = needed[2 * i + 1 : 2 * i + 3]
        grad_A = grad_B = None
        if needs_B:  # in this order the long sides are read as they lie
            grad_B = (columns[i].T @ grad).T.contiguous().mul_(update.kept_scale)
        if needed[0] or needs_A:
            grad_inner = (grad @ update.B).mul_(update.kept_scale)
        if needs_A:
            assert x is not None
            with _without(x, entries):
                grad_A = grad_inner.T @ x
        if needed[0]:
            part = grad_inner @ update.A
            if entries is not None:
                part.view(-1).index_fill_(0, entries, 0.0)
            grad_x = part if grad_x is None else grad_x.add_(part)
        grads += [grad_A, grad_B]
    return Gradients(grad_x, grads)


@contextmanager
def _without(x: torch.Tensor, entries: torch.Tensor | None) -> Iterator[None]:
    """Have the dropped entries of x be zero inside the context, and what they were after it.

    In place, for a copy of x costs more than the product it is for. Autograd is not told: nothing
    reads x before it is the same again.
    """
    if entries is None:
        yield
        return
    flat = x.data.view(-1)
    values = flat.index_select(0, entries)
    flat.index_fill_(0, entries, 0.0)
    try:
        yield
    finally:
        flat.index_copy_(0, entries, values)
