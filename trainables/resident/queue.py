"""The queue between a sweep's driver and its resident workers: one small Ray actor.

The driver submits jobs and reads their events; each group of resident workers takes one job at a
time and appends events to it. The actor counts the deaths of workers per job, because Ray Train
counts failures over a whole run only.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from spaces.errors import JobError
from trainables.resident.jobs import (
    AnyJob,
    Cancelled,
    Ending,
    Event,
    Failed,
    GroupFacts,
    Requeued,
    Steps,
)

POLL_S = 5.0  # whoever waits asks again after this long
BEAT_S = 10.0  # every worker gives a sign of life so often
SILENT_S = 120.0  # one that has given none for this long is said
STEPS_S = 1.0  # a running job tells how far it is, and the driver asks, once in so many seconds
MAX_IDLE_STARTS = 8  # starts of one group between two finished jobs


@dataclass
class _Entry:
    job: AnyJob | None
    state: Literal["waiting", "running", "over"] = "waiting"
    group: int | None = None
    events: deque[Event] = field(default_factory=deque)
    deaths: int = 0
    cancelled: bool = False
    left: bytes | None = None
    steps: Steps | None = None
    is_asked: bool = False
    so_far: bytes | None = None


class JobQueue:
    """State of all jobs of one sweep. Run it as a Ray actor: `start_job_queue()`.

    A job's events, in order: `Started`, what its kind of job tells (any number), then an `Ending`.
    A job whose worker died goes back to the head of the queue and starts again at its first epoch,
    `max_failures` times at most. A worker that gives no sign for `silent_s` seconds is said.
    """

    def __init__(self, groups: int = 1, max_failures: int = 2, silent_s: float = SILENT_S) -> None:
        self._number_of_groups, self._max_failures = groups, max_failures
        self._entries: dict[str, _Entry] = {}
        self._waiting: deque[str] = deque()
        self._numbers = itertools.count()
        self._changed = asyncio.Condition()
        self._closed = False
        self._groups: dict[int, GroupFacts] = {}
        self._idle_starts: dict[int, int] = {}
        self._died: set[int] = set()
        self._recomputes = False
        self._last_death: dict[int, str] = {}
        self._cancelled_early: set[str] = set()
        self._lost: dict[int, str] = {}
        self._controllers: dict[int, Any] = {}
        self._begun: dict[str, float] = {}
        self._silent_s = silent_s
        self._signs: dict[tuple[int, int], float] = {}
        self._beaten: dict[tuple[int, int], GroupFacts] = {}
        self._silent: set[tuple[int, int]] = set()
        self._notices: deque[str] = deque()

    async def submit(self, job: AnyJob) -> str:
        """Append a job; returns its id."""
        job_id = job.job_id or f"{job.kind}-job-{next(self._numbers):05d}"
        if job_id in self._entries:
            raise ValueError(f"a job {job_id} was submitted before")
        entry = self._entries[job_id] = _Entry(job)
        if job_id in self._cancelled_early:
            await self._finish(entry, Cancelled())
        elif len(self._lost) == self._number_of_groups:
            await self._finish(entry, Failed(next(iter(self._lost.values()))))
        else:
            self._waiting.append(job_id)
            await self._wake()
        return job_id

    async def next_event(self, job_id: str, timeout_s: float) -> Event | None:
        """The job's next unread event; None when none came within `timeout_s` seconds."""
        events = self._entries[job_id].events
        return events.popleft() if await self._comes(lambda: events, timeout_s) else None

    async def cancel(self, job_id: str) -> None:
        """Stop a job: at once where it waits or is yet to come, at its next step where it runs."""
        if job_id not in self._entries:
            self._cancelled_early.add(job_id)
            return
        entry = self._entries[job_id]
        if entry.state == "over":
            return
        entry.cancelled = True
        if entry.state == "waiting":
            self._waiting.remove(job_id)
            await self._finish(entry, Cancelled())

    async def close(self, cancel: bool = False) -> None:
        """Let every group leave its loop after what is queued; with `cancel`, at once."""
        if cancel:
            for job_id in list(self._entries):
                await self.cancel(job_id)
        self._closed = True
        await self._wake()

    # -- what a group's rank 0 calls ------------------------------------------------------------

    async def starting(self, group: int, size: int) -> bool:
        """One of a group's `size` workers comes up. False where the group only ever starts."""
        self._idle_starts[group] = self._idle_starts.get(group, 0) + 1
        if self._idle_starts[group] <= MAX_IDLE_STARTS * size:
            return True
        reason = self._last_death.get(group, "see Ray's logs")
        await self.group_lost(group, f"the workers keep dying while they start ({reason})")
        return False

    async def register(self, group: int, facts: GroupFacts) -> None:
        """A group has (re)started. A job that it held when it died is queued again or failed."""
        await self._take_back_all(group)
        self._groups[group] = facts
        if facts.recomputes and not self._recomputes:
            self._recomputes = True
            await self._notify(
                "activation checkpointing is on: the base's layers keep their inputs alone and are "
                "computed again for their gradients (train.activation_checkpointing)"
            )
        if group in self._died:
            self._died.discard(group)
            await self._notify(f"group {group} is up again on {facts.host}")

    async def beat(self, group: int, rank: int, facts: GroupFacts) -> None:
        """A sign of life of one worker, which gives one every `BEAT_S` seconds."""
        worker, now = (group, rank), time.monotonic()
        if worker in self._silent:
            self._silent.discard(worker)
            silent = now - self._signs[worker]
            await self._notify(
                f"group {group}: its worker on {facts.host} goes on after {silent:.0f} s"
            )
        self._signs[worker], self._beaten[worker] = now, facts

    async def worker_died(self, group: int, reason: str) -> None:
        """A worker of the group is gone: its job can be taken by another group at once."""
        self._last_death[group] = reason
        if group in self._died or self._closed:
            return
        self._groups.pop(group, None)
        self._died.add(group)
        for worker in [worker for worker in self._signs if worker[0] == group]:
            del self._signs[worker]
            self._silent.discard(worker)
        again = await self._take_back_all(group)
        then = f"; {again}" if again else ""
        await self._notify(
            f"group {group} lost a worker ({reason}){then}; the group starts again as soon as the "
            "cluster has room for it"
        )

    async def hold_controller(self, group: int, controller: Any) -> None:
        """Keep the handle of the actor that runs a group, to end one that never came up."""
        self._controllers[group] = controller

    async def controllers(self, only_idle: bool) -> dict[int, Any]:
        """Handles of the actors that run groups, or of those alone whose group is not up."""
        up = self._groups if only_idle else {}
        return {group: actor for group, actor in self._controllers.items() if group not in up}

    async def take(
        self, group: int, timeout_s: float
    ) -> tuple[str, AnyJob] | Literal["closed"] | None:
        """The next job for this group; None when none came in time; "closed" to leave the loop."""
        if group in self._died:  # what is left of it will be ended and started again
            await asyncio.sleep(timeout_s)
            return "closed" if self._closed else None
        if not await self._comes(lambda: self._waiting or self._closed, timeout_s):
            return None
        if not self._waiting:
            return "closed"
        job_id = self._waiting.popleft()
        entry = self._entries[job_id]
        entry.state, entry.group = "running", group
        if entry.deaths == 0:
            self._begun[job_id] = time.time()
        assert entry.job is not None
        return job_id, entry.job

    async def report(self, job_id: str, event: Event, group: int | None = None) -> bool:
        """Append an event of a running job. True when the job is to stop.

        A job that was taken back from a dying `group` hears nothing more from it.
        """
        entry = self._entries[job_id]
        if entry.state != "running" or group not in (None, entry.group):
            return True
        if isinstance(event, Ending):
            await self._finish(entry, event)
        else:
            await self._append(entry, event)
        return entry.cancelled

    async def tell_steps(self, job_id: str, steps: Steps, group: int) -> None:
        """Note how far a running job is; nobody is woken, and what was told before is forgotten."""
        entry = self._entries[job_id]
        if entry.state == "running" and entry.group == group:
            entry.steps = steps

    async def leave(self, job_id: str, made: bytes) -> None:
        """Keep what a running job has made (a trial's weights) until the driver collects it."""
        entry = self._entries[job_id]
        if entry.state == "running":
            entry.left = made

    async def is_asked(self, job_id: str) -> bool:
        """Whether the driver wants what a running job has trained so far."""
        return self._entries[job_id].is_asked

    async def leave_so_far(self, job_id: str, made: bytes) -> None:
        """Keep what a running job has trained so far until the driver collects it."""
        entry = self._entries[job_id]
        entry.is_asked, entry.so_far = False, made

    async def is_cancelled(self, job_id: str) -> bool:
        """Whether the driver wants this job stopped."""
        return self._entries[job_id].cancelled

    # -- what the driver asks --------------------------------------------------------------------

    async def begun(self) -> dict[str, float]:
        """Jobs that groups have taken since this was last asked: id -> when, in Unix time."""
        begun, self._begun = self._begun, {}
        return begun

    async def steps(self) -> dict[str, Steps]:
        """How far the running jobs are that have told: job id -> steps."""
        running = {k: entry.steps for k, entry in self._entries.items() if entry.state == "running"}
        return {job_id: steps for job_id, steps in running.items() if steps is not None}

    async def collect(self, job_id: str) -> bytes | None:
        """What a job has left, once; None where it left nothing."""
        entry = self._entries.get(job_id)
        if entry is None:
            return None
        left, entry.left = entry.left, None
        return left

    async def ask_so_far(self, job_id: str) -> bool:
        """Have a job leave at the end of its epoch what it has trained; False where it is over."""
        entry = self._entries.get(job_id)
        if entry is None or entry.state == "over":
            return False
        entry.is_asked = True
        return True

    async def collect_so_far(self, job_id: str) -> tuple[bytes | None, bool]:
        """What a job has trained so far, once, where it has left that; and whether it may yet."""
        entry = self._entries.get(job_id)
        if entry is None:
            return None, False
        made, entry.so_far = entry.so_far, None
        return made, made is None and entry.state != "over"

    async def group_lost(self, group: int, error: str) -> str:
        """A group will not come back: fail its job and, where it was the last, all that wait.

        Returns the error that it was first lost with.
        """
        self._groups.pop(group, None)
        self._lost.setdefault(group, error)
        for entry in self._entries.values():
            if entry.state == "running" and entry.group == group:
                await self._finish(entry, Failed(error))
        if len(self._lost) == self._number_of_groups:
            while self._waiting:
                entry = self._entries[self._waiting.popleft()]
                await self._finish(entry, Failed(error))
        return self._lost[group]

    async def groups(self) -> dict[int, GroupFacts]:
        """The groups that are up: group number -> what its rank 0 said of itself."""
        return dict(self._groups)

    async def next_notice(self, timeout_s: float) -> str | None:
        """The next thing that a user should know of the groups; None when there was none in time.

        "" once the queue is closed.
        """
        await self._look_for_silence()
        if not await self._comes(lambda: self._notices or self._closed, timeout_s):
            return None
        return self._notices.popleft() if self._notices else ""

    # -- within ----------------------------------------------------------------------------------

    async def _comes(self, what: Callable[[], object], timeout_s: float) -> bool:
        """Whether `what` is there, or comes to be within `timeout_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(what)
                return True
        return False

    async def _wake(self) -> None:
        """Let all that wait look again."""
        async with self._changed:
            self._changed.notify_all()

    async def _notify(self, notice: str) -> None:
        self._notices.append(notice)
        await self._wake()

    async def _look_for_silence(self) -> None:
        """Say once of each worker that it hangs, as far as can be told from here."""
        now = time.monotonic()
        for worker, last in list(self._signs.items()):
            group = worker[0]
            if now - last <= self._silent_s or worker in self._silent or group not in self._groups:
                continue
            self._silent.add(worker)
            held = [
                _in_words(job_id)
                for job_id, entry in self._entries.items()
                if entry.state == "running" and entry.group == group
            ]
            facts = self._beaten[worker]
            await self._notify(
                f"group {group}: its worker on {facts.host} (process {facts.pid}) has given no "
                f"sign of life for {now - last:.0f} s{' in ' + held[0] if held else ''}; Ray gives "
                "it up after ten minutes and starts the group again, and at once if it is killed"
            )

    async def _take_back_all(self, group: int) -> str:
        """Queue or fail the jobs that a dead group held; returns what became of them, in words."""
        said = []
        for job_id, entry in self._entries.items():
            if entry.state == "running" and entry.group == group:
                said.append(await self._take_back(job_id, entry))
        return ", ".join(said)

    async def _take_back(self, job_id: str, entry: _Entry) -> str:
        entry.deaths += 1
        entry.group = entry.steps = None
        if entry.cancelled:
            await self._finish(entry, Cancelled())
            return f"{_in_words(job_id)} was cancelled"
        if entry.deaths > self._max_failures:
            error = f"the worker died {entry.deaths} times in this job (cluster.max_failures)"
            await self._finish(entry, Failed(error))
            return f"{_in_words(job_id)} fails"
        entry.state = "waiting"
        self._waiting.appendleft(job_id)
        await self._append(entry, Requeued())
        tries = self._max_failures + 1
        return f"{_in_words(job_id)} starts again (try {entry.deaths + 1} of {tries})"

    async def _finish(self, entry: _Entry, ending: Ending) -> None:
        entry.state = "over"
        entry.job = None  # a plan is large; nobody reads it any more
        if entry.group is not None:
            self._idle_starts.pop(entry.group, None)
        await self._append(entry, ending)

    async def _append(self, entry: _Entry, event: Event) -> None:
        entry.events.append(event)
        await self._wake()


def _in_words(job_id: str) -> str:
    """trial-00010 as users know it: trial 10."""
    kind, _, number = job_id.partition("-")
    return f"{kind} {int(number)}" if number.isdigit() else job_id


def start_job_queue(groups: int = 1, max_failures: int = 2, silent_s: float = SILENT_S) -> Any:
    """Start the queue as a Ray actor that many callers can wait on at once.

    It lives on the driver's node, so that the sweep outlasts the loss of any other.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(JobQueue).options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here)
    return actor.remote(groups, max_failures, silent_s)


def events_of(queue: Any, job_id: str) -> Iterator[Event]:
    """A job's events as they come, up to its last. Raises JobError where the queue is gone."""
    event: Event | None = None
    while not isinstance(event, Ending):
        try:
            event = ray.get(queue.next_event.remote(job_id, POLL_S))
        except ray.exceptions.RayActorError as error:
            raise JobError("the sweep's job queue is gone; launch again with --resume") from error
        if event is not None:
            yield event
