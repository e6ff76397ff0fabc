"""Frozen linear layers with the low-rank updates of an adapter, with dropout on their input.

A step of a large base waits for launches and passes over large activations, more than for the
arithmetic of the updates. So the layers that read one input x [n, in] are put together. With the
layers' A one below another in A [R, in], the frozen W_i [out_i, in] and B_i [out_i, r_i],

    z = dropout(x) A^T                           one product and one draw of dropout for all layers
    y_i = x W_i^T + b_i + scale_i z_i B_i^T      z_i the columns of z that are layer i's,

and backwards, g_i the gradient of y_i,

    grad B_i = scale_i g_i^T z_i,    grad z_i = scale_i g_i B_i  written into its columns of grad z,
    grad x = sum_i g_i W_i + dropout(grad z A),    grad A = grad z^T dropout(x),

where each product is added to the output or gradient that is there already. Two autograd functions
written by hand do this: `_Inner` makes z, `_Layer` is one layer. x and z go through the layers as a
chain, so that backwards each layer gets what the later ones have found for grad x and grad z, and
adds its own in place: nothing but the chain knows these tensors.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from trainables.layers.dropout import InputDropout, input_dropout


class LowRank(NamedTuple):
    """The update scale * (B[:, :t] A[:t] dropout(x) + B[:, t:] A[t:] x): A [R, in], B [out, R].

    The first t = `trained` ranks train, all of them where it is None, and read an input of which
    every entry is dropped with probability `dropout` on its own, the others scaled by
    1 / (1 - dropout). The other ranks are frozen and read the input as it is; the gradients that
    they are given mean nothing, and are finite.
    """

    A: torch.Tensor
    B: torch.Tensor
    scale: float = 1.0
    dropout: float = 0.0
    trained: int | None = None

    @property
    def dropping(self) -> int:
        """How many ranks, the first ones, read the input with entries dropped."""
        if self.dropout == 0:
            return 0
        return len(self.A) if self.trained is None else self.trained


def add_low_rank(y: torch.Tensor, x: torch.Tensor, update: LowRank) -> torch.Tensor:
    """y [..., out] with the update for x [..., in], by torch's own operations."""
    A, B, scale, dropout, _ = update
    cut = update.dropping
    parts = []
    if cut > 0:
        dropped = nn.functional.dropout(x, dropout)
        parts.append(nn.functional.linear(dropped.to(A.dtype), A[:cut]))
    if cut < len(A):
        parts.append(nn.functional.linear(x.to(A.dtype), A[cut:]))
    inner = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    added = nn.functional.linear(inner, B if scale == 1 else B * scale)
    return y + added.to(y.dtype)


def linear_with_update(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, update: LowRank | None
) -> torch.Tensor:
    """x W^T + b of a frozen layer with its update: x [..., in], W [out, in], y [..., out].

    By torch's own operations where `by_hand` says no.
    """
    if update is not None and by_hand(x, weight, bias, update):
        return SharedInput(x, {None: update}).layer(None, weight, bias)
    y = nn.functional.linear(x, weight, bias)
    return y if update is None else add_low_rank(y, x, update)


def by_hand(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, update: LowRank
) -> bool:
    """Whether `SharedInput` can compute a layer: it is frozen, all of it lies on one device in one
    dtype, and there is no autocast."""
    layer = (weight,) if bias is None else (weight, bias)
    return (
        not any(each.requires_grad for each in layer)
        and all(is_like(x, each) for each in (*layer, update.A, update.B))
        and not torch.is_autocast_enabled(x.device.type)
    )


def is_like(x: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both lie on one device in one dtype."""
    return x.device == other.device and x.dtype == other.dtype


class SharedInput:
    """An input x [..., in] on its way through the layers that read it one after another.

    `updates` are those of the layers that are likely to, by a key of each; all have one `dropout`,
    and entries of x are dropped for all of them together. A layer that reads something else after
    all costs no more than its part of the small product; its factors have no gradient from here.
    """

    def __init__(self, x: torch.Tensor, updates: Mapping[Hashable, LowRank]) -> None:
        self._source, self._version = x, None if x.is_inference() else x._version
        self._with_grad = torch.is_grad_enabled()
        self._updates = updates
        self._places = {key: place for place, key in enumerate(updates)}
        self._ranks = _Ranks.of(list(updates.values()))
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        factors = [update.A for update in updates.values()]
        chained, self._inner = _Inner.apply(rows, self._ranks, *factors)
        self._x = chained if rows.requires_grad else rows

    def update_for(self, key: Hashable, x: torch.Tensor) -> LowRank | None:
        """The update of a layer that is about to read x; None where it cannot be read here."""
        if (
            not self._ranks.is_open
            or key not in self._places
            or self._ranks.called[self._places[key]]
            or x is not self._source
            or self._version is None
            or x._version != self._version
            or torch.is_grad_enabled() != self._with_grad
        ):
            return None
        return self._updates[key]

    @property
    def is_done(self) -> bool:
        """Whether all layers have read it."""
        return all(self._ranks.called)

    def layer(self, key: Hashable, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The output [..., out] of the layer of that key, of weight [out, in] and bias [out]."""
        update, place = self._updates[key], self._places[key]
        self._ranks.called[place] = True
        own = _Own(update.scale, self._ranks.columns[place], self.is_done, self._ranks)
        y, x, self._inner = _Layer.apply(self._x, self._inner, weight, bias, update.B, own)
        self._x = x if self._x.requires_grad else self._x
        return y.view(*self._source.shape[:-1], len(weight))  # type: ignore[no-any-return]


@dataclass
class _Ranks:
    """The ranks of all layers together: whose each is, and which of them read the input with
    entries dropped and which as it is.

    `called` is filled in as layers are called, until a backward pass through any of them.
    """

    dropout: float
    dropping: Sequence[slice]
    plain: Sequence[slice]
    columns: Sequence[slice]
    called: list[bool]
    is_open: bool = True

    @classmethod
    def of(cls, updates: Sequence[LowRank]) -> _Ranks:
        columns: list[slice] = []
        dropping: list[slice] = []
        plain: list[slice] = []
        stop = 0
        for update in updates:
            start, stop = stop, stop + len(update.A)
            cut = start + update.dropping
            columns.append(slice(start, stop))
            _append(dropping, start, cut)
            _append(plain, cut, stop)
        return cls(updates[0].dropout, dropping, plain, columns, [False] * len(updates))


def _append(spans: list[slice], start: int, stop: int) -> None:
    """Add what lies between to ascending spans, as a part of the last where it follows on it."""
    if start == stop:
        return
    if spans and spans[-1].stop == start:
        start = spans.pop().start
    spans.append(slice(start, stop))


class _Own(NamedTuple):
    """What is a layer's own in the chain: its scale, and its columns of z.

    `is_last` says that all layers of the chain have been called: backwards, every column of grad z
    is then written before it is read.
    """

    scale: float
    columns: slice
    is_last: bool
    ranks: _Ranks


class _Inner(torch.autograd.Function):
    """(x, z) for x [n, in] and the A of the layers."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, ranks: _Ranks, *factors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        A = _stacked(factors)
        ctx.ranks = ranks
        ctx.dropout = input_dropout(x.device, ranks.dropout) if ranks.dropping else None
        inner = x.new_empty(len(x), len(A))
        if ranks.plain:  # of all ranks in one product, also where the next ones are written over
            inner.addmm_(x, A.T, beta=0)
        with _read(x, ctx.dropout) as read:
            for span in ranks.dropping:
                inner[:, span].addmm_(read, A[span].T, beta=0, alpha=ctx.dropout.scale)
        needed = ctx.dropout is not None or any(ctx.needs_input_grad[2:])
        ctx.save_for_backward(x if needed else None, A)
        ctx.set_materialize_grads(False)
        return x, inner

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_x: torch.Tensor | None, grad_inner: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        ranks, dropout = ctx.ranks, ctx.dropout
        needs = ctx.needs_input_grad[2:]
        if grad_inner is None:
            return grad_x, None, *(None for _ in needs)
        x, A = ctx.saved_tensors
        grad_A: torch.Tensor | None = None
        with _read(x, dropout) as read:
            if any(needs):
                alpha = 1.0 if dropout is None else dropout.scale
                grad_A = A.new_empty(A.shape).addmm_(grad_inner.T, read, beta=0, alpha=alpha)
            if grad_x is not None and dropout is not None:
                dropout.add(grad_x, [(grad_inner[:, span], A[span]) for span in ranks.dropping])
        if grad_x is not None:
            for span in ranks.plain:
                grad_x.addmm_(grad_inner[:, span], A[span])
        own = [
            grad_A[rows] if needed and called and grad_A is not None else None
            for needed, called, rows in zip(needs, ranks.called, ranks.columns, strict=True)
        ]
        return grad_x, None, *own


def _stacked(factors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The layers' A one below another, without a copy where they lie so."""
    first, stop = factors[0], factors[0].storage_offset()
    for A in factors:
        if (
            A.storage_offset() != stop
            or not A.is_contiguous()
            or A.untyped_storage() is not first.untyped_storage()
        ):
            return torch.cat(list(factors))
        stop += A.numel()
    size = (sum(len(A) for A in factors), first.shape[1])
    return first if len(factors) == 1 else first.as_strided(size, first.stride())


def _read(x: torch.Tensor, dropout: InputDropout | None) -> Any:
    return nullcontext(x) if dropout is None else dropout.read(x)


class _Layer(torch.autograd.Function):
    """(y, x, z) of one layer for the chain's x [n, in] and z [n, R]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        inner: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        B: torch.Tensor,
        own: _Own,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.own, ctx.size = own, inner.shape
        ctx.save_for_backward(weight, inner if ctx.needs_input_grad[4] else None, B)
        ctx.set_materialize_grads(False)
        y = _outer(inner[:, own.columns], B, own.scale, bias)
        return y.addmm_(x, weight.T), x, inner

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        grad: torch.Tensor | None,
        grad_x: torch.Tensor | None,
        grad_inner: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, ...]:
        scale, columns, is_last, ranks = ctx.own
        ranks.is_open = False
        needs_x, needs_inner, _, _, needs_B, _ = ctx.needs_input_grad
        if grad is None:
            if grad_inner is not None:
                grad_inner[:, columns].zero_()
            return grad_x, grad_inner, None, None, None, None
        weight, inner, B = ctx.saved_tensors
        grad = grad.contiguous()  # once for all products that read it
        grad_B = _grad_of_outer(grad, inner[:, columns], B, scale) if needs_B else None
        if needs_inner:
            if grad_inner is None:
                grad_inner = (grad.new_empty if is_last else grad.new_zeros)(ctx.size)
            grad_inner[:, columns].addmm_(grad, B, beta=0, alpha=scale)
        if needs_x:
            grad_x = grad @ weight if grad_x is None else grad_x.addmm_(grad, weight)
        return grad_x, grad_inner, None, None, grad_B, None


def _outer(
    inner: torch.Tensor, B: torch.Tensor, scale: float, bias: torch.Tensor | None
) -> torch.Tensor:
    """scale * z B^T + b, to which the layer's own product is added.

    In this order a 16-bit output is rounded once by its own size and once by the update's.
    """
    if bias is None:
        return inner.new_empty(len(inner), len(B)).addmm_(inner, B.T, beta=0, alpha=scale)
    if inner.is_cpu:  # as one more rank the bias costs no pass of its own
        ones = inner.new_ones(len(inner), 1)
        return torch.cat([inner, ones], 1) @ torch.cat([B * scale, bias[:, None]], 1).T
    return torch.addmm(bias, inner, B.T, alpha=scale)


def _grad_of_outer(
    grad: torch.Tensor, inner: torch.Tensor, B: torch.Tensor, scale: float
) -> torch.Tensor:
    """scale * grad^T z [out, r], laid out as B is."""
    if B.is_contiguous() and not B.is_cpu:
        return torch.empty_like(B).addmm_(grad.T, inner, beta=0, alpha=scale)
    # in this order a CPU reads the long sides as they lie
    turned = grad.new_empty(B.shape[::-1]).addmm_(inner.T, grad, beta=0, alpha=scale)
    return turned.T.contiguous() if B.is_contiguous() else turned.T
