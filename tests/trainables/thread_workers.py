"""Workers of a group whose processes are threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from trainables.engine.workers import Workers

Found = TypeVar("Found")


@dataclass
class Meeting:
    """Where the workers of a group of threads lay what they have, and wait for each other."""

    size: int
    barrier: threading.Barrier = field(init=False)
    laid: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size)

    def exchanged(self, rank: int, value: Any) -> list[Any]:
        """What every rank has given, in order."""
        self.barrier.wait(60)
        self.laid[rank] = value
        self.barrier.wait(60)
        given = [self.laid[each] for each in range(self.size)]
        self.barrier.wait(60)
        return given


@dataclass(frozen=True)
class ThreadWorkers(Workers):
    """One worker of a group whose processes are threads."""

    meeting: Meeting

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(torch.stack(self.gather_objects(tensor.clone())).sum(0))

    def gather_objects(self, value: Any) -> list[Any]:
        return self.meeting.exchanged(self.rank, value)


def of_workers(size: int, work: Callable[[Workers], Found]) -> list[Found]:
    """What each of `size` workers gives, all at once. Raises what the first of them raises."""
    meeting = Meeting(size)

    def of_one(rank: int) -> Found:
        try:
            return work(ThreadWorkers(rank, size, torch.device("cpu"), meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(of_one, range(size)))
