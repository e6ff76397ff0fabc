"""Resident workers: a Ray Train worker group that loads the base once and serves jobs to the end.

`ResidentWorkers` is the driver's side: it starts the job queue and the groups. `serve` is the loop
that each worker runs. Rank 0 takes a job from the queue and broadcasts it; all ranks run it and
agree on every stop. Nothing of a job survives into the next.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from spaces.errors import JobError, RanksweepError
from trainables.job_queue import Event, Job, start_job_queue
from trainables.settings import ProfileSettings, TrainSettings

logger = logging.getLogger(__name__)

POLL_S = 5.0  # rank 0 asks again after this long; the other ranks wait in a broadcast meanwhile
CANCEL_POLL_S = 0.2  # how often a running job asks whether it was cancelled
CLOSING_S = 60.0  # a group that serves ends its last step, its engine and its processes within this
SLOW_START_S = 120.0  # after this long a user is told which groups have not come up


@dataclass(frozen=True)
class GroupSettings:
    """What the workers of every group are: how many, and what each of them takes of a node."""

    groups: int = 1
    workers_per_group: int = 1
    resources_per_worker: Mapping[str, float] | None = None
    max_failures: int = 2


class ResidentWorkers:
    """The driver's side: a context manager that starts the groups and closes them.

    `storage_path` is where Ray Train writes its own small state. `dtype` names the torch dtype that
    the base is loaded in. `on_notice` hears, from a thread, what a user should know of the groups.
    Once `hurried`, closing does not wait for jobs to end.
    """

    def __init__(
        self,
        *,
        base_uri: str,
        base_fingerprint: str,
        task: Any,
        dtype: str,
        deepspeed: Mapping[str, Any],
        settings: GroupSettings,
        storage_path: str,
        on_notice: Callable[[str], None] = logger.warning,
        hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings, self._storage_path = settings, storage_path
        self._config = {
            "base_uri": base_uri,
            "base_fingerprint": base_fingerprint,
            "dtype": dtype,
            "deepspeed": dict(deepspeed),
        }
        self._task = task
        self._on_notice, self._hurried = on_notice, hurried
        self._threads: list[threading.Thread] = []
        self._leaving = threading.Event()
        self._lost: dict[int, str] = {}
        self.queue: Any = None

    def __enter__(self) -> ResidentWorkers:
        import ray

        # Here, not in the threads: two imports of Ray's libraries at once can collide.
        import ray.train.torch
        import ray.tune

        self.queue = start_job_queue(self._settings.groups, self._settings.max_failures)
        self._config |= {"queue": self.queue, "task": [ray.put(self._task)]}
        for group in range(self._settings.groups):
            self._start_thread(self._run_group, group)
        self._start_thread(self._pass_notices_on)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        import ray

        self._leaving.set()
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self.queue.close.remote(cancel=kind is not None), timeout=10)
            # One that waits for a place in the cluster, or for a dead node, would do so for ever.
            self._end_groups(only_idle=True)
        give_up, killed = time.monotonic() + CLOSING_S, False
        # Shutting Ray down under a thread that waits for it aborts.
        while any(thread.is_alive() for thread in self._threads) and time.monotonic() < give_up:
            if self._hurried() and not killed:
                killed = True
                with contextlib.suppress(ray.exceptions.RayError):
                    self._end_groups(only_idle=False)
            time.sleep(0.05)

    def _end_groups(self, *, only_idle: bool) -> None:
        """Kill the actors that run groups, and with them their workers."""
        import ray

        controllers = ray.get(self.queue.controllers.remote(only_idle), timeout=10)
        for controller in controllers.values():
            ray.kill(controller)

    def run(self, job: Job, *, on_event: Callable[[Event], None] | None = None) -> dict[str, Any]:
        """Submit a job, pass its events on and wait for its result. Raises JobError.

        What `on_event` raises cancels the job and is passed on.
        """
        import ray

        job_id = ray.get(self.queue.submit.remote(job))
        for event in events_of(self.queue, job_id):
            try:
                if on_event is not None:
                    on_event(event)
            except BaseException:
                ray.get(self.queue.cancel.remote(job_id))
                raise
            if event["type"] == "done":
                return dict(event["result"])
            if event["type"] == "failed":
                raise JobError(f"{job['kind']} failed: {event['error']}")
        raise JobError(f"{job['kind']} was cancelled")

    def collect(self, job_id: str) -> bytes | None:
        """What a finished job has left with the queue, once; None for nothing. Raises JobError."""
        import ray

        try:
            left: bytes | None = ray.get(self.queue.collect.remote(job_id))
        except ray.exceptions.RayError as error:
            raise JobError(f"the job queue does not answer ({_one_line(error)})") from error
        return left

    def lost(self) -> str | None:
        """Why no group is left to serve a job; None while there is one."""
        if len(self._lost) < self._settings.groups:
            return None
        return next(iter(self._lost.values()))

    def _start_thread(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _pass_notices_on(self) -> None:
        """Tell what happens to the groups, and once which of them have not come up."""
        import ray

        tell_slow = time.monotonic() + SLOW_START_S
        while not self._leaving.is_set():
            try:
                notice = ray.get(self.queue.next_notice.remote(POLL_S))
                if notice == "":
                    return
                if notice is not None:
                    self._on_notice(notice)
                if time.monotonic() > tell_slow:
                    tell_slow = math.inf
                    self._tell_of_slow_starts(len(ray.get(self.queue.groups.remote())))
            except ray.exceptions.RayError:
                return

    def _tell_of_slow_starts(self, up: int) -> None:
        settings = self._settings
        if up + len(self._lost) < settings.groups:
            what = dict(settings.resources_per_worker or {"CPU": 1})
            self._on_notice(
                f"cluster.groups: {up} of {settings.groups} groups are up; the others wait for the "
                f"cluster to have room for {settings.workers_per_group} x {what} each"
            )

    def _run_group(self, group: int) -> None:
        """Run one group to its end, in a thread of its own, and tell the queue when it is lost."""
        import ray

        error = "the group of resident workers ended"
        try:
            self._trainer(group).fit()
        except Exception as failure:
            error = f"{error}: {_one_line(failure)}"
        if self._leaving.is_set():  # Ray may be gone by now, and asking it would start it anew
            return
        try:
            error = ray.get(self.queue.group_lost.remote(group, error))
        except ray.exceptions.RayError:
            logger.debug("the queue was gone before group %d", group)
        self._lost[group] = error

    def _trainer(self, group: int) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from trainables.group_watch import GroupWatch

        resources = dict(self._settings.resources_per_worker or {"CPU": 1})
        use_gpu = resources.get("GPU", 0) > 0
        return TorchTrainer(
            serve,
            train_loop_config=self._config | {"group": group},
            scaling_config=ScalingConfig(
                num_workers=self._settings.workers_per_group,
                use_gpu=use_gpu,
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                name=f"group-{group}",
                storage_path=self._storage_path,
                failure_config=FailureConfig(max_failures=-1),
                callbacks=[GroupWatch(self.queue, group)],
            ),
            torch_config=TorchConfig(backend=None if use_gpu else "gloo"),
        )


def events_of(queue: Any, job_id: str) -> Iterator[Event]:
    """A job's events as they come, up to its last. Raises JobError where the queue is gone."""
    import ray

    while True:
        try:
            event = ray.get(queue.next_event.remote(job_id, POLL_S))
        except ray.exceptions.RayActorError as error:
            raise JobError("the sweep's job queue is gone; launch again with --resume") from error
        if event is None:
            continue
        yield event
        if event["type"] in ("done", "failed", "cancelled"):
            return


# --- the worker's side -----------------------------------------------------------------------


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
        error = f"a worker could not load the base: {_one_line(failure)}"
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

    from trainables.bases import load_base
    from trainables.workers import join

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

    from trainables.finetuning import CancelledError, DivergedError

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
    from trainables.adaptations import adaptation_for
    from trainables.bases import fresh_head
    from trainables.finetuning import finetune

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
    from trainables.trained import Trained, TrainedFacts

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

    `checkpoints` of the job, {"store": URI, "prefix": STR}, is where it is saved on the way.
    """
    from trainables.bases import fresh_head, resolve_targets
    from trainables.object_storage import ObjectStorage
    from trainables.profiling import compute_profile

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

    place = job.get("checkpoints")
    profile = compute_profile(
        base.model, fresh_head(base, settings.seed), targets, resident.task, settings,
        workers=resident.workers, deepspeed=resident.deepspeed,
        base_fingerprint=base.fingerprint, on_progress=on_progress, on_message=on_message,
        should_stop=channel.should_stop,
        checkpoints=ObjectStorage(place["store"]).under(place["prefix"]) if place else None,
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

    line = _one_line(failure)
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


def _one_line(failure: BaseException) -> str:
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
