"""What a worker makes of a job that fails, without Ray: what it says, and that it goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from trainables.engine.workers import Workers
from trainables.resident import worker as loop
from trainables.training.stage import CancelledError, DivergedError

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB"
CPU = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 85899345920 bytes. Error code 12 (Cannot allocate memory)"
)


class Queue:
    """Takes reports as the queue's actor does."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.report = SimpleNamespace(remote=self._report)

    def _report(self, job_id: str, event: dict[str, Any], group: int | None) -> bool:
        self.events.append(event)
        return False


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.setattr(ray, "get", lambda answer, **kwargs: answer)
    return Queue()


def run(queue: Queue, monkeypatch: pytest.MonkeyPatch, kind: str, error: Exception | None) -> None:
    """One job of a kind on a worker of its own, which fails with the error."""

    def work(*arguments: Any) -> dict[str, Any]:
        if error is not None:
            raise error
        return {"metrics": {}}

    monkeypatch.setattr(loop, "_trial", work)
    monkeypatch.setattr(loop, "_profile", work)
    alone = Workers(0, 1, torch.device("cpu"))
    worker = loop._Resident(None, None, alone, {})
    loop._run_job(worker, queue, 0, "job", {"kind": kind})


@pytest.mark.parametrize(
    ("kind", "error", "remedy"),
    [
        ("trial", torch.OutOfMemoryError(CUDA), "lower train.batch_size"),
        ("trial", RuntimeError(CPU), "lower train.batch_size"),
        ("profile", torch.OutOfMemoryError(CUDA), "lower profile.batch_size"),
    ],
)
def test_a_job_out_of_memory_fails_with_a_remedy_and_the_worker_serves_the_next(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, kind: str, error: Exception, remedy: str
) -> None:
    run(queue, monkeypatch, kind, error)
    run(queue, monkeypatch, "trial", None)
    failed = queue.events[1]
    assert [e["type"] for e in queue.events] == ["started", "failed", "started", "done"]
    assert remedy in failed["error"]
    assert "\n" not in failed["error"]


@pytest.mark.parametrize(
    ("error", "ends"),
    [(DivergedError("the loss is not finite"), "failed"), (CancelledError(), "cancelled")],
)
def test_a_job_that_diverged_or_was_cancelled_leaves_the_worker_at_work(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, error: Exception, ends: str
) -> None:
    run(queue, monkeypatch, "trial", error)
    run(queue, monkeypatch, "trial", None)
    assert [e["type"] for e in queue.events] == ["started", ends, "started", "done"]


def test_a_collective_that_a_dead_peer_broke_is_no_failure_of_the_job(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="gloo"):
        run(queue, monkeypatch, "trial", RuntimeError("[gloo/pair.cc] Connection closed by peer"))
    assert [e["type"] for e in queue.events] == ["started"]
