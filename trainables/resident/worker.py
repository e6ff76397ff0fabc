"""The worker's side: the loop that loads the base once and serves jobs to the end."""

from __future__ import annotations

import gc
import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spaces.errors import JobError, RanksweepError
from trainables.profiling.settings import ProfileSettings
from trainables.resident.jobs import POLL_S, Event, Job
from trainables.training.settings import TrainSettings

CANCEL_POLL_S = 0.2  # how often a running job asks whether it was cancelled


@dataclass
class _Resident:
    """What a worker keeps from job to job."""

    base: Any
    task: Any
    workers: Any
    deepspeed: Mapping[str, Any]


def serve(config: dict[str, Any]) -> None:
    """The loop of one worker: load the base, then serve jobs until the queue is closed."""
    import ray.train

    queue, group = config["queue"], config["group"]
    _quieten()
    if not ray.get(queue.starting.remote(group, ray.train.get_context().get_world_size())):
        return
    try:
        resident = _load(config)
    except Exception as failure:
        # Raised, Ray Train would start the group again for ever; the next start would fail alike.
        error = f"a worker could not load the base: {one_line(failure)}"
        ray.get(queue.group_lost.remote(group, error))
        return
    gc.freeze()  # what a job leaves behind is then all that the collector has to look at
    workers = resident.workers
    if workers.rank == 0:
        ray.get(queue.register.remote(group, _describe(resident)))
    while True:
        taken = None
        if workers.rank == 0:
            taken = ray.get(queue.take.remote(group, POLL_S))
        taken = workers.broadcast_object(taken)
        if taken == "closed":
            return
        if taken is not None:
            _run_job(resident, queue, group, *taken)


def _load(config: dict[str, Any]) -> _Resident:
    import ray
    import torch
    from ray.train.torch import get_device

    from trainables.bases.loading import load_base
    from trainables.engine.workers import join

    device = get_device()
    workers = join(device)
    if device.type == "cpu":
        assigned = ray.get_runtime_context().get_assigned_resources()
        torch.set_num_threads(max(1, int(assigned.get("CPU", 1))))
    task = ray.get(config["task"][0])
    base = load_base(
        config["base_uri"], task.kind, len(task.labels), getattr(torch, config["dtype"]), device
    )
    if base.fingerprint != config["base_fingerprint"]:
        raise JobError(
            f"base: {config['base_uri']} on this node differs from the driver's; install the same "
            "files on every node"
        )
    return _Resident(base, task, workers, config["deepspeed"])


def _describe(resident: _Resident) -> dict[str, Any]:
    import ray

    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "node": ray.get_runtime_context().get_node_id(),
        "device": str(resident.workers.device),
        "workers": resident.workers.size,
        "dtype": str(next(resident.base.model.parameters()).dtype).removeprefix("torch."),
    }


def _run_job(resident: _Resident, queue: Any, group: int, job_id: str, job: Job) -> None:
    import ray

    from trainables.training.stage import CancelledError, DivergedError

    channel = _Channel(queue, group, job_id, resident.workers.rank == 0)
    channel.send({"type": "started"})
    try:
        result = {"trial": _trial, "profile": _profile}[job["kind"]](resident, job, channel)
        channel.send({"type": "done", "result": result})
    except CancelledError:
        channel.send({"type": "cancelled"})
    except DivergedError as failure:  # every rank saw the same loss
        channel.send({"type": "failed", "error": str(failure), "traceback": ""})
    except Exception as failure:
        if _peer_is_gone(failure):
            raise  # the group starts again and the job with it; its death is what counts
        # On any rank: the others may hang in a collective, so the queue hears of it first.
        event = {
            "type": "failed",
            "error": _explain(failure, job["kind"]),
            "traceback": traceback.format_exc(limit=20),
        }
        ray.get(queue.report.remote(job_id, event, group))
        if resident.workers.size > 1:
            raise
    finally:
        _give_memory_back()


class _Channel:
    """A running job's line to the queue; only rank 0 speaks."""

    def __init__(self, queue: Any, group: int, job_id: str, speaks: bool) -> None:
        self._queue, self._group, self._job_id, self._speaks = queue, group, job_id, speaks
        self._stop = False
        self._asked: Any = None
        self._next_poll = 0.0

    def send(self, event: Event) -> None:
        import ray

        if self._speaks:
            self._stop |= ray.get(self._queue.report.remote(self._job_id, event, self._group))

    def leave(self, made: Callable[[], bytes]) -> None:
        """Leave what the job has made with the queue, for the driver to collect."""
        import ray

        if self._speaks:
            ray.get(self._queue.leave.remote(self._job_id, made()))

    def should_stop(self) -> bool:
        """Rank 0's knowledge of whether the driver cancelled the job; asks without waiting."""
        import ray

        if not self._speaks or self._stop:
            return self._stop
        if self._asked is not None:
            ready, _ = ray.wait([self._asked], timeout=0)
            if ready:
                self._stop = ray.get(self._asked)
                self._asked = None
        elif time.monotonic() >= self._next_poll:
            self._next_poll = time.monotonic() + CANCEL_POLL_S
            self._asked = self._queue.is_cancelled.remote(self._job_id)
        return self._stop


def _trial(resident: _Resident, job: Job, channel: _Channel) -> dict[str, Any]:
    """Train one plan and measure it; `split` is dev, or test for a confirmation run.

    With `keep_weights` the queue is left the trial's weights, as a file's bytes.
    """
    from spaces.plan import Plan
    from trainables.adaptations.registry import adaptation_for
    from trainables.bases.loading import fresh_head
    from trainables.training.finetune import finetune

    settings = TrainSettings.model_validate(job["train"])
    plan = Plan.from_bytes(job["plan"])
    head = fresh_head(resident.base, job["seed"])
    split = job.get("split", "dev")
    ready: list[float] = []
    first_step: list[float] = []

    def on_step(_step: int) -> None:
        if not first_step:
            first_step.append(time.time())

    def on_epoch(epoch: int, report: dict[str, float]) -> None:
        channel.send({"type": "epoch", "epoch": epoch, "metrics": report})

    with adaptation_for(
        plan, resident.base.model, seed=job["seed"], dropout=settings.dropout, head=head
    ) as adaptation:
        metrics = finetune(
            resident.base.model, adaptation, resident.task, settings,
            learning_rate=job["learning_rate"], seed=job["seed"], workers=resident.workers,
            deepspeed=resident.deepspeed, evaluate_on=split, evaluate_every_epoch=split == "dev",
            on_ready=lambda: ready.append(time.time()), on_step=on_step, on_epoch=on_epoch,
            should_stop=channel.should_stop,
        )  # fmt: skip
        if job.get("keep_weights"):
            channel.leave(_trained(resident, job, adaptation.weights(), head))
    return {
        "metrics": metrics,
        "epochs": settings.epochs,
        "trainable_params": plan.trainable_params,
        "head_params": sum(p.numel() for module in head.values() for p in module.parameters()),
        "plan_digest": plan.digest,
        "ready_at": ready[0] if ready else first_step[0],
        "first_step_at": first_step[0],
    }


def _trained(
    resident: _Resident, job: Job, weights: Mapping[str, Any], head: Mapping[str, Any]
) -> Callable[[], bytes]:
    """The file of a trial's weights, made when it is asked for."""
    from trainables.trained.weights import Trained, TrainedFacts

    base, task = resident.base, resident.task
    facts = TrainedFacts(
        base_uri=base.uri,
        base_fingerprint=base.fingerprint,
        model_kind=base.model_kind,
        task_kind=task.kind,
        labels=task.labels,
        head_modules=tuple(head),
        method=str(job.get("choice", {}).get("method", "")),
        dtype=str(next(base.model.parameters()).dtype).removeprefix("torch."),
        seed=job["seed"],
    )
    states = {name: module.state_dict() for name, module in head.items()}
    return Trained(facts, weights, states).to_bytes


def _profile(resident: _Resident, job: Job, channel: _Channel) -> dict[str, Any]:
    """Compute the profile; the result holds its file's bytes.

    `checkpoints` of the job, a `Checkpoints`, is where it is saved on the way.
    """
    from trainables.bases.loading import fresh_head
    from trainables.bases.structure import resolve_targets
    from trainables.profiling.profile import compute_profile

    settings = ProfileSettings.model_validate(job["settings"])
    base = resident.base
    targets = resolve_targets(base.model, base.head_modules, settings.target_modules)
    started, last = time.monotonic(), 0.0

    def on_progress(phase: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5 or done == total:
            last = time.monotonic()
            channel.send({"type": "progress", "phase": phase, "done": done, "total": total})

    def on_message(line: str) -> None:
        channel.send({"type": "message", "text": line})

    profile = compute_profile(
        base.model, fresh_head(base, settings.seed), targets, resident.task, settings,
        workers=resident.workers, deepspeed=resident.deepspeed,
        base_fingerprint=base.fingerprint, on_progress=on_progress, on_message=on_message,
        should_stop=channel.should_stop,
        checkpoints=job.get("checkpoints"),
    )  # fmt: skip
    data = profile.to_bytes() if resident.workers.rank == 0 else b""
    return {"profile": data, "seconds": time.monotonic() - started}


def _peer_is_gone(failure: BaseException) -> bool:
    """Whether a collective failed because another rank died; gloo raises a bare RuntimeError."""
    import torch.distributed as dist

    return isinstance(failure, dist.DistError) or (
        isinstance(failure, RuntimeError) and ("gloo" in str(failure) or "NCCL" in str(failure))
    )


def _explain(failure: BaseException, kind: str) -> str:
    """A job's failure in one line, with the remedy where it is known."""
    import torch

    line = one_line(failure)
    short = ("out of memory", "can't allocate memory")  # a GPU's allocator, and the CPU's
    if isinstance(failure, torch.OutOfMemoryError) or any(sign in line for sign in short):
        if kind == "profile":
            return f"{line}; lower profile.batch_size"
        return f"{line}; lower train.batch_size or raise train.gradient_accumulation_steps"
    return line


def _give_memory_back() -> None:
    """After a job: collect what it has left, and let a GPU have the memory that it held."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def one_line(failure: BaseException) -> str:
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    if lines and isinstance(failure, RanksweepError):
        return lines[0]  # written for people
    return f"{type(failure).__name__}: {lines[0]}" if lines else type(failure).__name__


def _quieten() -> None:
    """Keep DeepSpeed's and transformers' news of every engine out of the workers' logs."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
