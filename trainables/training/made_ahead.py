"""Batches that are made while a GPU computes the one before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch

from trainables.tasks.split import pinned
from trainables.training.stage import MicroBatch

Item = TypeVar("Item")


@contextmanager
def made_ahead(
    make: Callable[[Item], Iterable[MicroBatch]], items: Iterable[Item], device: torch.device
) -> Iterator[Iterator[Iterable[MicroBatch]]]:
    """What `make` gives for each of the items, in their order.

    For a GPU it is made one item ahead, in a thread of its own and in pinned memory. On a CPU the
    thread would take cores from what trains, so there it is made when it is asked for. Raises, when
    an item is asked for, what making it has raised.
    """
    if device.type != "cuda":
        yield map(make, items)
        return

    def whole(item: Item) -> list[MicroBatch]:
        return [
            replace(each, passes=[pinned(batch) for batch in each.passes]) for each in make(item)
        ]

    def one_ahead() -> Iterator[Iterable[MicroBatch]]:
        waiting: deque[Future[list[MicroBatch]]] = deque()
        for item in items:
            waiting.append(thread.submit(whole, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    # A thread starts on the first device, whatever that of the others is.
    thread = ThreadPoolExecutor(1, "batches", torch.cuda.set_device, (device,))
    try:
        yield one_ahead()
    finally:
        thread.shutdown(cancel_futures=True)
