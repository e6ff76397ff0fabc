"""The bytes that a computation comes to hold, counted on tensors that have no values.

A base of any size is run forward and backward as fake tensors: torch's own autograd decides what is
kept and for how long, whatever the architecture, and nothing is computed. Where a value would be
asked for, which is how many entries dropout drops or whether a mask hides anything, the answer is
one that leads to more memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FEW_LAYERS = 8
"""So many layers are run whole."""
_MANY = 2**40
_ASKED = torch.ops.aten._local_scalar_dense.default
_SOUGHT = torch.ops.aten.nonzero.default


class Held(TorchDispatchMode):
    """Bytes of the storages that are made while it is on: `now` alive, and `most` at once."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes = {_place(tensor.untyped_storage()): 0 for tensor in known}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is _ASKED:
            return _answer(args[0].dtype)
        if func is _SOUGHT:  # as many as there may be
            (x,) = args
            made: Any = torch.empty(x.numel(), x.ndim, dtype=torch.long)
        else:
            made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                self._add(each.untyped_storage())
        return made

    def forget_most(self) -> int:
        """The most so far, which is counted anew from here on."""
        most, self.most = self.most, self.now
        return most

    def _add(self, storage: torch.UntypedStorage) -> None:
        place = _place(storage)
        if place not in self._sizes:
            self._sizes[place] = storage.nbytes()
            self.now += self._sizes[place]
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, place)

    def _drop(self, place: int) -> None:
        self.now -= self._sizes.pop(place)


def _place(storage: torch.UntypedStorage) -> int:
    place: int = storage._cdata
    return place


def _answer(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return False
    return 1.0 if dtype.is_floating_point else _MANY


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Have attention and dropout keep what they keep on a GPU, where each is one kernel.

    They are put in the place of torch's own: a mode of torch's functions is off in a backward pass,
    where layers may be computed again.
    """
    own = functional.scaled_dot_product_attention, functional.dropout
    functional.scaled_dot_product_attention = _attention
    functional.dropout = _dropout
    try:
        yield
    finally:
        functional.scaled_dot_product_attention, functional.dropout = own


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> torch.Tensor:
    y: torch.Tensor = _Attention.apply(query, key, value)
    return y


def _dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    return torch.native_dropout(input, p, training)[0] if training and p else input


class _Attention(torch.autograd.Function):
    """Attention that keeps its inputs, its output and a number a query: FlashAttention's."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        y = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, y, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return y

    @staticmethod
    def backward(ctx: Any, _grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def faked(model: nn.Module, dtype: torch.dtype) -> FakeTensorMode:
    """Make a model of the meta device one of a CPU in `dtype`, of fake tensors; it runs where the
    mode that is returned is on."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model.to(dtype)
    with mode:
        model.to_empty(device="cpu")
    return mode


def shallow(model: nn.Module, measure: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    """What `measure` tells of a model, told by two and by three of its layers where there are many
    alike; it is linear in their number."""
    stacks = _stacks(model)
    depths = {len(layers) for _, _, layers in stacks}
    if len(depths) != 1:
        return measure()
    (depth,) = depths
    try:
        few, more = (_of_first(stacks, number, measure) for number in (2, 3))
    except (IndexError, KeyError, AttributeError, TypeError, ValueError, RuntimeError):
        return measure()  # it counts its layers
    return tuple(a + (depth - 2) * (b - a) for a, b in zip(few, more, strict=True))


def _stacks(model: nn.Module) -> list[tuple[nn.Module, str, nn.ModuleList]]:
    """The lists of many layers that are alike, each with its parent and its name there."""
    found = []
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) > FEW_LAYERS:
                shapes = {
                    (type(layer), *((n, tuple(p.shape)) for n, p in layer.named_parameters()))
                    for layer in child
                }
                if len(shapes) == 1:
                    found.append((parent, name, child))
    return found


def _of_first(
    stacks: Iterable[tuple[nn.Module, str, nn.ModuleList]],
    number: int,
    measure: Callable[[], tuple[int, ...]],
) -> tuple[int, ...]:
    try:
        for parent, name, layers in stacks:
            setattr(parent, name, nn.ModuleList(list(layers)[:number]))
        return measure()
    finally:
        for parent, name, layers in stacks:
            setattr(parent, name, layers)
