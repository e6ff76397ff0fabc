"""What a static pass sums up while gradients and inputs go by."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spaces.target import TargetModule
from trainables.engine.workers import Workers
from trainables.layers.hooks import Hooks, accumulated_in, weight_of
from trainables.profiling.checkpoints import Tensors

SQUARES_AT_ONCE = 2**16  # of a layer's input on a CPU: so many stay in a core's cache


def squares_in_parts(vectors: torch.Tensor) -> torch.Tensor:
    """Sums of x^2 over vectors x [n, in], float64 [in], by parts that stay in a core's cache."""
    squares = torch.zeros(vectors.shape[-1], dtype=torch.float64, device=vectors.device)
    for part in vectors.split(max(1, SQUARES_AT_ONCE // vectors.shape[-1])):
        squares += part.to(torch.float64, copy=True).square_().sum(0)
    return squares


def squares_at_once(x: torch.Tensor, is_token: torch.Tensor | None) -> torch.Tensor:
    """Sums of x^2 over the vectors of x [..., in], float64 [in], in six launches and no sync.

    `is_token` bool [rows, positions] is false where x is left out. Each line of positions is summed
    in float32 (a GPU casts 16 bits on the way, so no copy in 32 exists), the lines in float64. A
    GPU adds in trees, no more than some hundred terms one after another, and all are positive: a
    few 1e-7 of a sum are lost. A CPU adds a whole line one after another, and loses more.
    """
    if is_token is not None:
        x = torch.where(is_token[..., None], x.reshape(*is_token.shape, x.shape[-1]), 0)
    lines = x.reshape(-1, *x.shape[-2:])
    norms: torch.Tensor = torch.linalg.vector_norm(lines, dim=1, dtype=accumulated_in(x.dtype))
    return norms.to(torch.float64).square_().sum(0)


class _Seen(NamedTuple):
    """What one reading adds: sums of x^2 [in] in float64 over `number` vectors x."""

    of: str
    squares: torch.Tensor
    number: int


class Readings:
    """What layers read in one pass after another: the vectors that are tokens, none of padding."""

    def __init__(self) -> None:
        self.count = True
        self._is_token: torch.Tensor | None = None
        self._tokens = 0
        self._last: tuple[weakref.ref[torch.Tensor], int, _Seen] | None = None

    def begin(self, given: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Say which pass comes next: as its split gives it, on the host, and on the device."""
        name = "is_token" if "is_token" in given else "attention_mask"
        self._is_token = None
        if name in given:  # pictures are not padded, nor are rows of one length
            self._is_token = batch[name].bool()
            self._tokens = int(np.count_nonzero(given[name].numpy()))  # the device is not asked

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """While open, what layers read is not to be counted."""
        before, self.count = self.count, False
        try:
            yield
        finally:
            self.count = before

    def of(self, x: torch.Tensor) -> _Seen:
        """What a layer reads; query, key and value read the same."""
        if self._last is None or self._last[0]() is not x or self._last[1] != x._version:
            self._last = weakref.ref(x), x._version, self._seen(x.detach())
        return self._last[2]

    def _seen(self, x: torch.Tensor) -> _Seen:
        """Of the vectors of x [..., in]."""
        of, is_token, number = "tokens", self._is_token, x.numel() // x.shape[-1]
        if is_token is not None:
            if x.shape[:-1] in (is_token.shape, (is_token.numel(),)):
                number = self._tokens
            else:
                is_token = None
                if x.ndim != 2:  # a pooler reads one vector a row
                    of = "others"
        if x.device.type != "cpu":
            return _Seen(of, squares_at_once(x, is_token), number)
        flat = x.reshape(-1, x.shape[-1])
        if is_token is not None:
            flat = flat[is_token.reshape(-1)]
        return _Seen(of, squares_in_parts(flat), number)


class _Inputs:
    """Sums of x^2 [in] in float64 over what a layer has read, and over how many vectors x.

    A layer that reads no tokens (DeBERTa's projections of relative positions) is measured on what
    it reads; one that reads both, on its tokens alone, so that the mean does not depend on how the
    rows are divided into micro-batches.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._squares = {
            of: torch.zeros(width, dtype=torch.float64, device=device)
            for of in ("tokens", "others")
        }
        self._number = dict.fromkeys(self._squares, 0)

    def add(self, seen: _Seen) -> None:
        """Count what a layer has read."""
        self._squares[seen.of] += seen.squares
        self._number[seen.of] += seen.number

    def tensors(self) -> dict[str, torch.Tensor]:
        """`<of>/squares` [in] and `<of>/number`, float64, of this worker."""
        numbers = {of: torch.tensor(n, dtype=torch.float64) for of, n in self._number.items()}
        return {
            f"{of}/{what}": tensor
            for what, tensors in (("squares", self._squares), ("number", numbers))
            for of, tensor in tensors.items()
        }

    def add_saved(self, saved: Tensors) -> None:
        """Add what `tensors` has given."""
        for of, squares in self._squares.items():
            squares.add_(saved[f"{of}/squares"].to(squares.device))
            self._number[of] += int(saved[f"{of}/number"])

    def hessian_diag(self, workers: Workers, owner: int) -> NDArray[np.float32] | None:
        """Diagonal of H = 2 E[x x^T] over non-padding tokens of all workers, float32 [in]: of the
        worker `owner`; None on the others. A collective."""
        parts = list(self._squares.values())
        numbers = torch.tensor(list(self._number.values()), dtype=torch.float64)
        total = workers.reduce_to(owner, torch.cat([*parts, numbers.to(parts[0].device)]))
        if workers.rank != owner:
            return None
        tokens, others, (of_tokens, of_others) = total.cpu().split([*map(len, parts), 2])
        squares, number = (tokens, of_tokens) if of_tokens > 0 else (others, of_others)
        diagonal: NDArray[np.float32] = (2 * squares / number.clamp(min=1)).float().numpy()
        return diagonal


class Accumulators(Hooks):
    """What a pass adds up for a group of modules, as long as the context lasts.

    Each weight's gradient is added to its accumulator as backward produces it, and freed.
    """

    def __init__(self, model: nn.Module, targets: Sequence[TargetModule]) -> None:
        super().__init__()
        self._model, self._targets = model, targets
        self.abs_gradient: dict[str, torch.Tensor] = {}
        self.inputs: dict[str, _Inputs] = {}
        self.readings = Readings()
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

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """What a module's sums are by now, on the CPU."""
        sums = {"abs_gradient": self.abs_gradient[name], **self.inputs[name].tensors()}
        return {key: tensor.cpu() for key, tensor in sums.items()}

    def add(self, name: str, saved: Tensors) -> None:
        """Add what `tensors` has given."""
        gradient = self.abs_gradient[name]
        gradient += saved["abs_gradient"].to(gradient.device)
        self.inputs[name].add_saved(saved)

    def _adding(self, name: str) -> Callable[[torch.Tensor], None]:
        accumulator = self.abs_gradient[name]

        def add(weight: torch.Tensor) -> None:
            assert weight.grad is not None
            accumulator.add_(weight.grad.abs_())
            weight.grad = None

        return add

    def _measuring(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def measure(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if self.readings.count:
                self.inputs[name].add(self.readings.of(inputs[0]))

        return measure
