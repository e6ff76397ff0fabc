"""What the loop wants to know of a step, asked so that the host does not wait for a GPU.

A GPU is given steps ahead of what it has computed. Whoever reads a number from it waits until it
has come there, and it then waits for the next step to be given.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trainables.engine.workers import Workers
from trainables.training.stage import DivergedError


class StepClock:
    """Seconds that each step takes: on a GPU between events on its stream, else by the wall."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds: list[float] = []
        self._running: deque[tuple[Any, Any]] = deque()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time what is done inside."""
        if not self._on_gpu:
            started = time.perf_counter()
            yield
            self._seconds.append(time.perf_counter() - started)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._running.append((begin, end))
        while self._running and self._running[0][1].query():  # those that are over
            self._read()

    def seconds(self) -> list[float]:
        """Of every step so far, the last of which is waited for."""
        while self._running:
            self._running[0][1].synchronize()
            self._read()
        return self._seconds

    def _read(self) -> None:
        begin, end = self._running.popleft()
        self._seconds.append(begin.elapsed_time(end) / 1000)


class LossCheck:
    """Whether the loss is finite on every worker; a GPU's answer is read at the next look."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._asked: tuple[int, torch.Tensor, Any] | None = None

    def look(self, loss_sum: torch.Tensor, step: int) -> None:
        """Ask of the loss summed up to `step`. A collective. Raises as `settle` does."""
        finite = self._workers.sum_(torch.isfinite(loss_sum).to(torch.float64))
        self.settle()
        if self._workers.device.type != "cuda":
            self._asked = step, finite, None
            self.settle()
            return
        answer = torch.empty((), dtype=finite.dtype, device="cpu", pin_memory=True)
        answer.copy_(finite, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._asked = step, answer, arrived

    def settle(self) -> None:
        """Wait for the answer to the last look, if it was not read yet.

        Raises DivergedError on every worker where the loss was not finite on one.
        """
        if self._asked is None:
            return
        (step, finite, arrived), self._asked = self._asked, None
        if arrived is not None:
            arrived.synchronize()
        if float(finite) < self._workers.size:
            raise DivergedError(
                f"the training loss is not finite at step {step}; lower learning_rate or alpha"
            )
