"""The worker's side: the loop that loads the base once and serves jobs to the end."""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, singledispatch
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train.torch import get_device

from spaces.errors import ConfigError, JobError, one_line
from spaces.plan import Plan
from trainables.adaptations.adaptation import Adaptation, named_tensor
from trainables.adaptations.registry import adaptation_for
from trainables.bases.loading import Base, fresh_head, load_base
from trainables.bases.parts import load_tokenizer
from trainables.bases.structure import resolve_targets
from trainables.engine.accelerator import tensor_float_32
from trainables.engine.divided import divide
from trainables.engine.failures import out_of_memory, peer_is_gone, process_is_lost
from trainables.engine.section import divides_base, of_trials
from trainables.engine.workers import CancelledError, Workers, join
from trainables.profiling.determinism import allow_determinism
from trainables.profiling.profile import compute_profile
from trainables.resident.jobs import (
    AnyJob,
    BaseJob,
    BaseResult,
    Cancelled,
    Done,
    Epoch,
    Event,
    Failed,
    GroupFacts,
    Message,
    ProfileJob,
    ProfileResult,
    ProfileSteps,
    Started,
    Steps,
    TrialJob,
    TrialResult,
)
from trainables.resident.queue import BEAT_S, POLL_S, STEPS_S
from trainables.tasks.row_share import on_share
from trainables.tasks.split import outputs_of, to_device
from trainables.tasks.task import Task
from trainables.trained.weights import Trained, TrainedFacts, read_trained
from trainables.training.evaluate import OwnMetricError, evaluate_rows
from trainables.training.finetune import finetune
from trainables.training.lm_eval_settings import LmEvalError
from trainables.training.lm_eval_tasks import LmEvalTasks, check_package
from trainables.training.observer import Observer
from trainables.training.stage import DivergedError

CANCEL_POLL_S = 0.2  # how often a running job asks whether it was cancelled


@dataclass
class Resident:
    """What a worker keeps from job to job. `deepspeed` is the section for the engines of trials;
    `divided` is whether the base is divided among the workers."""

    base: Base
    task: Task
    workers: Workers
    deepspeed: Mapping[str, Any]
    recompute: bool = False
    divided: bool = False
    _shares: dict[tuple[float, int], Task] = field(default_factory=dict)

    def task_of(self, job: TrialJob) -> Task:
        """The task with the training rows of a job, which are chosen once for each share."""
        key = job.rows, job.rows_seed
        if key not in self._shares:
            self._shares[key] = on_share(self.task, *key)
        return self._shares[key]


def serve(config: dict[str, Any]) -> None:
    """The loop of one worker: load the base, then serve jobs until the queue is closed."""
    queue, group = config["queue"], config["group"]
    _quieten()
    allow_determinism()
    if not ray.get(queue.starting.remote(group, ray.train.get_context().get_world_size())):
        return
    try:
        resident = _load(config)
    except Exception as failure:
        # Raised, Ray Train would start the group again for ever; the next start would fail alike.
        error = f"a worker could not load the base: {one_line(failure)}"
        ray.get(queue.group_lost.remote(group, error))
        return
    with _signs_of_life(queue, group, resident.workers.rank):
        _serve_jobs(resident, queue, group)


def _serve_jobs(resident: Resident, queue: Any, group: int) -> None:
    gc.freeze()  # what a job leaves behind is then all that the collector has to look at
    workers = resident.workers
    if workers.rank == 0:
        facts = GroupFacts(socket.gethostname(), os.getpid(), workers.size, resident.recompute)
        ray.get(queue.register.remote(group, facts))
    while True:
        taken = None
        if workers.rank == 0:
            taken = ray.get(queue.take.remote(group, POLL_S))
        taken = workers.broadcast_object(taken)
        if taken == "closed":
            return
        if taken is not None:
            run_job(resident, queue, group, *taken)


@contextmanager
def _signs_of_life(queue: Any, group: int, rank: int) -> Iterator[None]:
    """While open, a thread tells the queue every `BEAT_S` seconds that this worker lives."""
    facts, left = GroupFacts(socket.gethostname(), os.getpid()), threading.Event()

    def beat() -> None:
        while True:
            queue.beat.remote(group, rank, facts)
            if left.wait(BEAT_S):
                return

    thread = threading.Thread(target=beat, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()


def _load(config: dict[str, Any]) -> Resident:
    device = get_device()
    workers = join(device)
    if device.type == "cpu":
        assigned = ray.get_runtime_context().get_assigned_resources()
        torch.set_num_threads(max(1, int(assigned.get("CPU", 1))))
    if config["files"] is not None:
        config["files"].bring()
    task = ray.get(config["task"][0])
    divided = divides_base(config["deepspeed"])
    base = load_base(
        config["base_uri"],
        task.head,
        task.outputs,
        getattr(torch, config["dtype"]),
        "cpu" if divided else device,  # divided, it need not fit on one device
        config["quantization"],
    )
    if base.fingerprint != config["base_fingerprint"]:
        raise JobError(
            f"base: {config['base_uri']} on this node differs from the driver's; install the same "
            "files on every node"
        )
    task = task.fitted(base.model)
    if divided:
        idle = partial(_idle, base.model, task, workers)
        divide(base.model, base.head_modules, config["deepspeed"], workers, idle)
    recompute = config["activations"].recomputed(base.model, workers)
    return Resident(base, task, workers, of_trials(config["deepspeed"]), recompute, divided)


def _idle(model: torch.nn.Module, task: Task, workers: Workers) -> None:
    """Take the shortest pass through a base."""
    split = task.splits["train"]
    batch = to_device(split.batch(np.argsort(split.lengths, kind="stable")[:1]), workers)
    batch.pop("labels")
    outputs_of(model, batch)


def run_job(resident: Resident, queue: Any, group: int, job_id: str, job: AnyJob) -> None:
    """Run one job on this worker and tell the queue how it goes and ends."""
    workers = resident.workers
    channel = Channel(queue, group, job_id, workers.rank == 0)
    channel.send(Started())
    try:
        channel.send(Done(perform(job, resident, channel)))
    except CancelledError:
        channel.send(Cancelled())
    except (DivergedError, LmEvalError, OwnMetricError) as failure:  # every rank saw the same
        channel.send(Failed(str(failure)))
    except Exception as failure:
        if workers.size > 1 and peer_is_gone(failure):
            raise  # the group starts again and the job with it; its death is what counts
        # On any rank: the others may hang in a collective, so the queue hears of it first.
        ray.get(queue.report.remote(job_id, Failed(_explain(failure, job)), group))
        # A pass that was broken off has left a divided base half gathered.
        if workers.size > 1 or process_is_lost(failure) or resident.divided:
            raise
    _give_memory_back(workers.device)


class Channel:
    """A running job's line to the queue; only rank 0 speaks, and all may ask."""

    def __init__(self, queue: Any, group: int, job_id: str, speaks: bool) -> None:
        self._queue, self._group, self._job_id, self._speaks = queue, group, job_id, speaks
        self._stop = False
        self._asked: Any = None
        self._next_poll = self._next_steps = 0.0

    def send(self, event: Event) -> None:
        """Tell the queue an event of the job."""
        if self._speaks:
            self._stop |= ray.get(self._queue.report.remote(self._job_id, event, self._group))

    def tell_steps(self, steps: Steps) -> None:
        """Tell the queue how far the job is, now and then and without waiting for its answer."""
        if self._speaks and time.monotonic() >= self._next_steps:
            self._next_steps = time.monotonic() + STEPS_S
            self._queue.tell_steps.remote(self._job_id, steps, self._group)

    def leave(self, made: Callable[[], bytes]) -> None:
        """Leave what the job has made with the queue, for the driver to collect."""
        if self._speaks:
            ray.get(self._queue.leave.remote(self._job_id, made()))

    def leave_if_asked(self, trained: Callable[[], bytes]) -> None:
        """Leave what is trained so far with the queue where the driver has asked for it."""
        if self._speaks and ray.get(self._queue.is_asked.remote(self._job_id)):
            ray.get(self._queue.leave_so_far.remote(self._job_id, trained()))

    def should_stop(self) -> bool:
        """This rank's knowledge of whether the driver cancelled the job; asks without waiting."""
        if self._stop:
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


@singledispatch
def perform(job: AnyJob, resident: Resident, channel: Channel) -> Any:
    """Do what a job asks for; returns its result."""
    raise TypeError(f"no worker knows how to do a {type(job).__name__}")


class _TrialObserver(Observer):
    """Tells the queue of a trial's epochs, and when the training had begun.

    `trained` makes the file of what is trained so far.
    """

    def __init__(self, channel: Channel, trained: Callable[[], bytes]) -> None:
        self._channel, self._trained = channel, trained
        self.ready_at = self.first_step_at = 0.0
        self._losses: Sequence[tuple[int, float]] = ()

    def on_ready(self) -> None:
        self.ready_at = time.time()

    def on_step(self, step: int, steps: int, learning_rate: float) -> None:
        self.first_step_at = self.first_step_at or time.time()
        self._channel.tell_steps(Steps(step, steps, learning_rate))

    def should_stop(self) -> bool:
        return self._channel.should_stop()

    def on_losses(self, losses: Sequence[tuple[int, float]]) -> None:
        self._losses = losses

    def on_epoch(self, epoch: int, report: dict[str, float]) -> None:
        self._channel.send(Epoch(epoch, report, self._losses))
        self._channel.leave_if_asked(self._trained)


@perform.register
def _train(job: TrialJob, resident: Resident, channel: Channel) -> TrialResult:
    base, plan = resident.base, Plan.from_bytes(job.plan)
    head = fresh_head(base, job.seed)
    with (
        tensor_float_32(job.train.tf32),
        adaptation_for(
            plan, base.model, seed=job.seed, dropout=job.train.dropout, head=head
        ) as adaptation,
    ):
        if job.warm is not None:
            _start_from(job.warm, adaptation, head)

        def so_far() -> bytes:
            return _trained(resident, job, adaptation.weights_so_far(), head)()

        observer = _TrialObserver(channel, so_far)
        metrics = finetune(
            base.model, adaptation, resident.task_of(job), job.train,
            learning_rate=job.learning_rate, seed=job.seed, workers=resident.workers,
            deepspeed=resident.deepspeed, evaluate_every_epoch=job.split == "dev",
            recompute=resident.recompute, observer=observer,
        )  # fmt: skip
        test_rows = None
        if job.split == "test":
            metrics, test_rows = _tested(resident, adaptation, metrics, channel)
        if job.keep_weights:
            channel.leave(_trained(resident, job, adaptation.weights(), head))
        scores, error = _scored(job, resident, channel)
    return TrialResult(
        metrics=metrics,
        head_params=sum(p.numel() for module in head.values() for p in module.parameters()),
        ready_at=observer.ready_at or observer.first_step_at,
        first_step_at=observer.first_step_at,
        test_rows=test_rows,
        lm_eval=scores,
        lm_eval_error=error,
    )


def _start_from(data: bytes, adaptation: Adaptation, head: Mapping[str, torch.nn.Module]) -> None:
    """Give an adaptation and its head the values that a file of trained weights has for them."""
    warm = read_trained(data, "warm", own_code=True)  # its task came with the job's own
    adaptation.start_from(warm.weights)
    with torch.no_grad():
        for name, state in warm.head.items():
            for key, tensor in head[name].state_dict().items() if name in head else ():
                tensor.copy_(named_tensor(state, key, tensor.shape))


def _scored(
    job: TrialJob, resident: Resident, channel: Channel
) -> tuple[Mapping[str, float], str | None]:
    """lm-eval's scores of what is attached, or why there are none: the job's own numbers stay."""
    if job.lm_eval is None:
        return {}, None
    try:
        return _lm_eval_scores(job.lm_eval, resident, channel), None
    except LmEvalError as failure:
        return {}, str(failure)


def _lm_eval_scores(
    asked: LmEvalTasks, resident: Resident, channel: Channel
) -> Mapping[str, float]:
    missing = None
    try:
        check_package()
    except ConfigError as error:
        missing = f"{error} on every node"
    for told in resident.workers.gather_objects(missing):
        if told is not None:
            raise LmEvalError(told)
    # Here, for lm-eval is an optional package.
    from trainables.training.lm_eval_scores import lm_eval_scores

    base, tokenizer = resident.base, load_tokenizer(resident.base.uri)
    with tensor_float_32(False):  # which others' scores were not made with
        return lm_eval_scores(base.model, tokenizer, asked, resident.workers, channel.should_stop)


@perform.register
def _measure_base(job: BaseJob, resident: Resident, channel: Channel) -> BaseResult:
    return BaseResult(_lm_eval_scores(job.lm_eval, resident, channel))


def _tested(
    resident: Resident, adaptation: Adaptation, on_dev: Mapping[str, float], channel: Channel
) -> tuple[dict[str, float], bytes | None]:
    """The report of a job that was measured on test too, and what it said of each test row."""
    task = resident.task
    hearing = replace(resident.workers, should_stop=channel.should_stop)
    on_test, rows = evaluate_rows(resident.base.model, adaptation, task, "test", hearing)
    report = {f"dev_{key}" if key in on_test else key: each for key, each in on_dev.items()}
    for key, value in on_test.items():
        own = key in ("test_loss", task.metric)  # the driver says of the latter what it is of
        report[key if own else f"test_{key}"] = value
    return report, None if rows is None else rows.to_bytes()


def _trained(
    resident: Resident,
    job: TrialJob,
    weights: Mapping[str, torch.Tensor],
    head: Mapping[str, torch.nn.Module],
) -> Callable[[], bytes]:
    """The file of a trial's weights, made when it is asked for."""
    base, task = resident.base, resident.task
    facts = TrainedFacts(
        base_uri=base.uri,
        base_fingerprint=base.fingerprint,
        model_kind=base.model_kind,
        task_kind=task.kind,
        labels=task.labels,
        head_modules=tuple(head),
        method=job.method,
        dtype=str(next(base.model.parameters()).dtype).removeprefix("torch."),
        seed=job.seed,
    )
    states = {name: module.state_dict() for name, module in head.items()}
    return Trained(facts, weights, states).to_bytes


@perform.register
@tensor_float_32(False)  # a profile's key does not say what made its products
def _profile(job: ProfileJob, resident: Resident, channel: Channel) -> ProfileResult:
    base, settings = resident.base, job.settings
    targets = resolve_targets(base.model, base.head_modules, settings.target_modules)
    started, last = time.monotonic(), 0.0

    def on_progress(phase: str, done: int, total: int, learning_rate: float | None = None) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5 or done == total:
            last = time.monotonic()
            channel.send(ProfileSteps(phase, done, total, learning_rate))

    profile = compute_profile(
        base.model, fresh_head(base, settings.seed), targets, resident.task, settings,
        workers=resident.workers, deepspeed=resident.deepspeed,
        base_fingerprint=base.fingerprint, checkpoints=job.checkpoints, on_progress=on_progress,
        on_message=lambda line: channel.send(Message(line)), should_stop=channel.should_stop,
        recompute=resident.recompute,
    )  # fmt: skip
    data = profile.to_bytes() if resident.workers.rank == 0 else b""
    return ProfileResult(data, time.monotonic() - started)


def _explain(failure: BaseException, job: AnyJob) -> str:
    """A job's failure in one line, with the remedy where it is known."""
    line = one_line(failure)
    if out_of_memory(failure):
        return f"{line}; {job.takes_less_memory}"
    if process_is_lost(failure):
        return f"{line}; the worker starts anew, and CUDA_LAUNCH_BLOCKING=1 on its node tells where"
    return line


def _give_memory_back(device: torch.device) -> None:
    """After a job: collect what it has left, and let a GPU have the memory that it held.

    Raises what a device says that computes nothing any more, whatever the job made of it: the job
    is over by now, and the worker starts anew.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def _quieten() -> None:
    """Keep DeepSpeed's and transformers' news of every engine out of the workers' logs."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
