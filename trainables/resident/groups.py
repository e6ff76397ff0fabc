"""Resident workers: a Ray Train worker group that loads the base once and serves jobs to the end.

`ResidentWorkers` is the driver's side: it starts the job queue and the groups. What each worker
runs stands in trainables/resident/worker.py: rank 0 takes a job from the queue and broadcasts it;
all ranks run it and agree on every stop. Nothing of a job survives into the next.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.tune  # used later, but two imports of Ray's libraries at once can collide
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from spaces.errors import CancelledJobError, JobError, one_line
from trainables.engine.accelerator import follow
from trainables.engine.workers import GLOO_AND_NCCL
from trainables.resident.activations import Activations
from trainables.resident.causes import why
from trainables.resident.gpu_memory import GpuMemory
from trainables.resident.group_watch import GroupWatch
from trainables.resident.jobs import Done, Event, Failed, Job, Result, Steps
from trainables.resident.node_files import serve_files
from trainables.resident.queue import POLL_S, STEPS_S, events_of, start_job_queue
from trainables.tasks.own import own_modules

logger = logging.getLogger(__name__)
CLOSING_S = 60.0  # a group that serves ends its last step, its engine and its processes within this
SLOW_START_S = 120.0  # after this long a user is told which groups have not come up


@dataclass(frozen=True)
class GroupSettings:
    """What the workers of every group are: how many, what each of them takes of a node, of which of
    Ray's types its GPU must be, and how it keeps activations."""

    groups: int = 1
    workers_per_group: int = 1
    resources_per_worker: Mapping[str, float] | None = None
    max_failures: int = 2
    activations: Activations = field(default_factory=Activations)
    accelerator_type: str | None = None


class ResidentWorkers:
    """The driver's side: a context manager that starts the groups and closes them.

    `storage_path` is where Ray Train writes its own small state. `dtype` names the torch dtype that
    the base is loaded in, with `quantization` its linear layers packed. `on_notice` hears, from a
    thread, what a user should know of the groups, and `on_steps` from another, about once a second,
    the id of each running job and how far it is. Once `hurried`, closing does not wait for jobs to
    end.
    """

    def __init__(
        self,
        *,
        base_uri: str,
        base_fingerprint: str,
        task: Any,
        dtype: str,
        deepspeed: Mapping[str, Any],
        quantization: str | None = None,
        settings: GroupSettings,
        storage_path: str,
        on_notice: Callable[[str], None] = logger.warning,
        on_steps: Callable[[str, Steps], None] | None = None,
        hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings, self._storage_path = settings, storage_path
        self._config: dict[str, Any] = {
            "base_uri": base_uri,
            "base_fingerprint": base_fingerprint,
            "dtype": dtype,
            "quantization": quantization,
            "deepspeed": dict(deepspeed),
            "activations": settings.activations,
        }
        self._task = task
        self._on_notice, self._on_steps, self._hurried = on_notice, on_steps, hurried
        self._threads: list[threading.Thread] = []
        self._leaving = threading.Event()
        self._lost: dict[int, str] = {}
        self.queue: Any = None

    def __enter__(self) -> ResidentWorkers:
        self.queue = start_job_queue(self._settings.groups, self._settings.max_failures)
        for module in own_modules():  # which the workers need not find
            ray.cloudpickle.register_pickle_by_value(module)
        self._config |= {
            "queue": self.queue,
            "task": [ray.put(self._task)],
            "files": serve_files(self._task.files),
        }
        for group in range(self._settings.groups):
            self._start_thread(self._run_group, group)
        self._start_thread(self._pass_notices_on)
        if self._on_steps is not None:
            self._start_thread(self._pass_steps_on, self._on_steps)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
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
        controllers = ray.get(self.queue.controllers.remote(only_idle), timeout=10)
        for controller in controllers.values():
            ray.kill(controller)

    def run(
        self, job: Job[Result], *, on_event: Callable[[Event], None] = lambda _event: None
    ) -> Result:
        """Submit a job, pass its events on and wait for its result. Raises JobError.

        What `on_event` raises cancels the job and is passed on.
        """
        job_id = ray.get(self.queue.submit.remote(job))
        for event in events_of(self.queue, job_id):
            try:
                on_event(event)
            except BaseException:
                ray.get(self.queue.cancel.remote(job_id))
                raise
            if isinstance(event, Done):
                return event.result  # type: ignore[return-value]
            if isinstance(event, Failed):
                raise JobError(f"{job.kind} failed: {event.error}")
        raise CancelledJobError(f"{job.kind} was cancelled")

    def collect(self, job_id: str) -> bytes | None:
        """What a finished job has left with the queue, once; None for nothing. Raises JobError."""
        try:
            left: bytes | None = ray.get(self.queue.collect.remote(job_id))
        except ray.exceptions.RayError as error:
            raise JobError(f"the job queue does not answer ({one_line(error)})") from error
        return left

    def cancel(self) -> None:
        """End every job that runs or waits; no more are taken."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self.queue.close.remote(cancel=True), timeout=10)

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

    def _pass_steps_on(self, on_steps: Callable[[str, Steps], None]) -> None:
        """Ask the queue again and again how far the jobs are that run."""
        while not self._leaving.wait(STEPS_S):
            try:
                running = ray.get(self.queue.steps.remote())
            except ray.exceptions.RayError:
                return
            for job_id, steps in running.items():
                on_steps(job_id, steps)

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
        error = "the group of resident workers ended"
        try:
            self._trainer(group).fit()
        except Exception as failure:
            error = f"{error} ({why(failure)})"
        if self._leaving.is_set():  # Ray may be gone by now, and asking it would start it anew
            return
        try:
            error = ray.get(self.queue.group_lost.remote(group, error))
        except ray.exceptions.RayError:
            logger.debug("the queue was gone before group %d", group)
        self._lost[group] = error
        said = f"group {group} is given up: {error}"
        if self.lost() is None:
            self._on_notice(said)  # the others go on, and nothing else would tell of it
        else:
            logger.error("%s", said)

    def _trainer(self, group: int) -> Any:
        resources = dict(self._settings.resources_per_worker or {"CPU": 1})
        use_gpu = resources.get("GPU", 0) > 0
        # A process a group that tells workers of a node which is to go, and nobody asks them: a
        # worker that goes with its node has its job done again by another.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        return TorchTrainer(
            _serve,
            train_loop_config=self._config | {"group": group},
            scaling_config=ScalingConfig(
                num_workers=self._settings.workers_per_group,
                use_gpu=use_gpu,
                resources_per_worker=resources,
                accelerator_type=self._settings.accelerator_type,
            ),
            run_config=RunConfig(
                name=f"group-{group}",
                storage_path=self._storage_path,
                failure_config=FailureConfig(max_failures=-1),
                callbacks=[GroupWatch(self.queue, group), *([GpuMemory()] if use_gpu else [])],
            ),
            torch_config=TorchConfig(backend=GLOO_AND_NCCL if use_gpu else "gloo"),
        )


def _serve(config: dict[str, Any]) -> None:
    follow(get_device())  # before what follows imports DeepSpeed
    # Here, for the driver has no use for what trains, which takes seconds to import.
    from trainables.resident.worker import serve

    serve(config)
