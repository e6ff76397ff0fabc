"""What a static pass sums up while gradients and inputs go by."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spaces.target import TargetModule
from trainables.engine.workers import Workers
from trainables.layers.hooks import Hooks, accumulated_in, weight_of
from trainables.profiling.checkpoints import Tensors

SQUARES_AT_ONCE = 2**16  # of a layer's input: so many stay in a core's cache


class _Seen(NamedTuple):
    """What one reading adds: sums of x^2 [in] in float64 over `number` vectors x."""

    of: str
    squares: torch.Tensor
    number: int

    @classmethod
    def reading(cls, x: torch.Tensor, mask: torch.Tensor | None) -> _Seen:
        """Of the vectors of x [..., in]; `mask` [rows, tokens] is 0 where a token is padding."""
        flat, of = x.reshape(-1, x.shape[-1]), "tokens"
        if mask is not None:  # pictures are not padded
            if x.shape[:-1] == mask.shape or x.shape[:-1] == (mask.numel(),):
                flat = flat[mask.reshape(-1).bool()]
            elif x.ndim != 2:  # a pooler reads one vector a row
                of = "others"
        squares = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
        for part in flat.split(max(1, SQUARES_AT_ONCE // x.shape[-1])):
            squares += part.to(torch.float64, copy=True).square_().sum(0)
        return cls(of, squares, len(flat))


class _Inputs:
    """Sums of x^2 [in] in float64 over what a layer has read, and over how many vectors x.

    A layer that reads no tokens (DeBERTa's projections of relative positions) is measured on what
    it reads; one that reads both, on its tokens alone, so that the mean does not depend on how the
    rows are divided into micro-batches.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.sums = {
            f"{of}/{what}": torch.zeros(shape, dtype=torch.float64, device=device)
            for of in ("tokens", "others")
            for what, shape in (("squares", (width,)), ("number", ()))
        }

    def add(self, seen: _Seen) -> None:
        """Count what a layer has read."""
        self.sums[f"{seen.of}/squares"] += seen.squares
        self.sums[f"{seen.of}/number"] += seen.number

    def hessian_diag(self, workers: Workers) -> NDArray[np.float32]:
        """Diagonal of H = 2 E[x x^T] over non-padding tokens of all workers, float32 [in]."""
        total = {name: workers.sum_(value) for name, value in self.sums.items()}
        of = "tokens" if total["tokens/number"] > 0 else "others"
        mean = 2 * total[f"{of}/squares"] / total[f"{of}/number"].clamp(min=1)
        return mean.cpu().numpy().astype(np.float32)


class Accumulators(Hooks):
    """What a pass adds up for a group of modules, as long as the context lasts.

    Each weight's gradient is added to its accumulator as backward produces it, and freed.
    """

    def __init__(self, model: nn.Module, targets: Sequence[TargetModule]) -> None:
        super().__init__()
        self._model, self._targets = model, targets
        self.abs_gradient: dict[str, torch.Tensor] = {}
        self.inputs: dict[str, _Inputs] = {}
        self.mask: torch.Tensor | None = None
        self._counts = True
        self._last: tuple[weakref.ref[torch.Tensor], int, _Seen] | None = None
        for target in targets:
            weight = weight_of(model, target)
            self.abs_gradient[target.name] = torch.zeros_like(
                weight, dtype=accumulated_in(weight.dtype), requires_grad=False
            )
            self.inputs[target.name] = _Inputs(target.shape[1], weight.device)

    def __enter__(self) -> Self:
        for target in self._targets:
            self.on_gradient(weight_of(self._model, target), self._adding(target.name))
            for alias in target.names:
                self.on_input(self._model.get_submodule(alias), self._measuring(target.name))
        return self

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """While open, inputs go by uncounted."""
        self._counts = False
        try:
            yield
        finally:
            self._counts = True

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """What a module's sums are by now, on the CPU."""
        return {key: tensor.cpu() for key, tensor in self._sums(name).items()}

    def add(self, name: str, saved: Tensors) -> None:
        """Add what `tensors` has given."""
        for key, tensor in self._sums(name).items():
            tensor.add_(saved[key].to(tensor.device))

    def _sums(self, name: str) -> dict[str, torch.Tensor]:
        return {"abs_gradient": self.abs_gradient[name], **self.inputs[name].sums}

    def _adding(self, name: str) -> Callable[[torch.Tensor], None]:
        accumulator = self.abs_gradient[name]

        def add(weight: torch.Tensor) -> None:
            assert weight.grad is not None
            accumulator.add_(weight.grad.abs_())
            weight.grad = None

        return add

    def _measuring(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def measure(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if self._counts:
                self.inputs[name].add(self._reading(inputs[0]))

        return measure

    def _reading(self, x: torch.Tensor) -> _Seen:
        """What a layer reads; query, key and value read the same."""
        if self._last is None or self._last[0]() is not x or self._last[1] != x._version:
            self._last = weakref.ref(x), x._version, _Seen.reading(x.detach(), self.mask)
        return self._last[2]
