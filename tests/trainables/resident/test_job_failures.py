"""What a worker makes of a job that fails, without Ray: what it says, and that it goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import ray
import torch

from trainables.engine.workers import CancelledError, Workers
from trainables.profiling.settings import ProfileSettings
from trainables.resident.jobs import (
    Cancelled,
    Done,
    Event,
    Failed,
    ProfileJob,
    Started,
    TrialJob,
    TrialResult,
)
from trainables.resident.worker import Channel, Resident, perform, run_job
from trainables.training.evaluate import OwnMetricError
from trainables.training.settings import TrainSettings
from trainables.training.stage import DivergedError

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB"
CPU = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 85899345920 bytes. Error code 12 (Cannot allocate memory)"
)


@dataclass(frozen=True, kw_only=True)
class Trial(TrialJob):
    """A trial that raises its error, or is done at once."""

    plan: bytes = b""
    learning_rate: float = 1e-3
    seed: int = 0
    train: TrainSettings = field(default_factory=TrainSettings)
    error: Exception | None = None


@dataclass(frozen=True, kw_only=True)
class Profiling(ProfileJob):
    """A profile that raises its error."""

    settings: ProfileSettings = field(default_factory=ProfileSettings)
    error: Exception


RESULT = TrialResult({}, head_params=0, ready_at=0.0, first_step_at=0.0)


@perform.register(Trial)
@perform.register(Profiling)
def _pretend(job: Trial | Profiling, resident: Resident, channel: Channel) -> TrialResult:
    if job.error is not None:
        raise job.error
    return RESULT


class Queue:
    """Takes reports as the queue's actor does."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.report = SimpleNamespace(remote=self._report)

    def _report(self, job_id: str, event: Event, group: int | None) -> bool:
        self.events.append(event)
        return False


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.setattr(ray, "get", lambda answer, **kwargs: answer)
    return Queue()


def run(queue: Queue, job: Trial | Profiling, size: int = 1) -> None:
    """One job on the first worker of a group of `size`."""
    first = Workers(0, size, torch.device("cpu"))
    worker = Resident(None, None, first, {})  # type: ignore[arg-type]
    run_job(worker, queue, 0, "job", job)


@pytest.mark.parametrize(
    ("job", "remedy"),
    [
        (Trial(error=torch.OutOfMemoryError(CUDA)), "lower train.batch_size"),
        (Trial(error=RuntimeError(CPU)), "lower train.batch_size"),
        (Profiling(error=torch.OutOfMemoryError(CUDA)), "lower profile.batch_size"),
    ],
)
def test_a_job_out_of_memory_fails_with_a_remedy_and_the_worker_serves_the_next(
    queue: Queue, job: Trial | Profiling, remedy: str
) -> None:
    run(queue, job)
    run(queue, Trial())
    started, failed, *rest = queue.events
    assert [started, *rest] == [Started(), Started(), Done(RESULT)]
    assert isinstance(failed, Failed)
    assert remedy in failed.error
    assert "\n" not in failed.error


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (DivergedError("the loss is not finite"), Failed("the loss is not finite")),
        (OwnMetricError("it gave no number"), Failed("it gave no number")),
        (CancelledError(), Cancelled()),
    ],
)
@pytest.mark.parametrize("size", [1, 2])
def test_an_end_that_all_workers_agree_on_leaves_them_at_work(
    queue: Queue, error: Exception, ends: Event, size: int
) -> None:
    run(queue, Trial(error=error), size)
    run(queue, Trial(), size)
    assert queue.events == [Started(), ends, Started(), Done(RESULT)]


def test_a_collective_that_a_dead_peer_broke_is_no_failure_of_the_job(queue: Queue) -> None:
    with pytest.raises(RuntimeError, match="gloo"):
        run(queue, Trial(error=RuntimeError("[gloo/pair.cc] Connection closed by peer")), size=2)
    assert queue.events == [Started()]


def test_a_lone_worker_whose_cuda_is_lost_fails_its_job_first_and_then_itself(queue: Queue) -> None:
    error = torch.AcceleratorError("CUDA error: device-side assert triggered\nSearch for it")
    with pytest.raises(torch.AcceleratorError):
        run(queue, Trial(error=error))
    started, failed = queue.events
    assert started == Started()
    assert isinstance(failed, Failed)
    assert "device-side assert triggered; the worker starts anew" in failed.error


@pytest.mark.parametrize("error", [None, OwnMetricError("it gave no number"), CancelledError()])
def test_a_gpu_that_computes_nothing_any_more_ends_the_worker_however_its_job_ended(
    queue: Queue, error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def synchronize(device: torch.device) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    worker = Resident(None, None, Workers(0, 1, torch.device("cuda")), {})  # type: ignore[arg-type]
    with pytest.raises(torch.AcceleratorError):
        run_job(worker, queue, 0, "job", Trial(error=error))
    assert len(queue.events) == 2  # it was told how the job ended


def test_every_rank_hears_of_a_cancelled_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray, "wait", lambda asked, timeout: (asked, []))
    queue = SimpleNamespace(is_cancelled=SimpleNamespace(remote=lambda job_id: job_id == "job"))
    for speaks in (True, False):
        channel = Channel(queue, 0, "job", speaks)
        assert [channel.should_stop() for _ in range(3)] == [False, True, True]
