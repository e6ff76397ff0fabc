"""The queue's promises: order, cancelling, and what becomes of a job whose worker dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from trainables.resident.jobs import (
    Cancelled,
    Done,
    Epoch,
    Event,
    Failed,
    GroupFacts,
    Requeued,
    Steps,
    TrialJob,
    TrialResult,
)
from trainables.resident.queue import MAX_IDLE_STARTS, JobQueue
from trainables.training.settings import TrainSettings

JOB = TrialJob(plan=b"", learning_rate=1e-3, seed=0, train=TrainSettings())
EPOCH = Epoch(1, {})
DONE = Done(TrialResult({}, head_params=0, ready_at=0.0, first_step_at=0.0))
UP = GroupFacts("node")


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


def id_of(handed: Any) -> str:
    """The id of the job that a group was handed."""
    assert isinstance(handed, tuple)
    return str(handed[0])


async def taken(queue: JobQueue, group: int) -> str:
    """The id of the job that a group takes now."""
    return id_of(await queue.take(group, 0.01))


async def events(queue: JobQueue, job_id: str) -> list[Event]:
    found = []
    while (event := await queue.next_event(job_id, 0.01)) is not None:
        found.append(event)
    return found


def test_jobs_are_taken_in_order_and_their_events_read_once() -> None:
    async def scenario() -> None:
        queue = JobQueue()
        one, two = await queue.submit(JOB), await queue.submit(replace(JOB, job_id="mine"))
        assert two == "mine"
        assert await taken(queue, 0) == one
        assert not await queue.report(one, EPOCH)
        assert not await queue.report(one, DONE)
        assert await events(queue, one) == [EPOCH, DONE]
        assert await events(queue, one) == []
        assert await taken(queue, 0) == two
        assert await queue.take(0, 0.01) is None

    run(scenario())


def test_how_far_a_job_is_is_known_while_it_runs_and_only_of_its_own_group() -> None:
    async def scenario() -> None:
        queue = JobQueue(groups=2)
        one, two = await queue.submit(JOB), await queue.submit(JOB)
        assert await taken(queue, 0) == one
        assert await taken(queue, 1) == two
        assert await queue.steps() == {}
        for done in (1, 2):
            await queue.tell_steps(one, Steps(done, 9, 1e-3), 0)
        await queue.tell_steps(two, Steps(7, 9, None), 0)
        assert await queue.steps() == {one: Steps(2, 9, 1e-3)}
        assert await events(queue, one) == []
        await queue.worker_died(0, "killed")
        assert await queue.steps() == {}
        await queue.tell_steps(two, Steps(7, 9, None), 1)
        await queue.report(two, DONE)
        assert await queue.steps() == {}

    run(scenario())


def test_a_waiting_group_is_woken_by_a_job_and_by_closing() -> None:
    async def scenario() -> None:
        queue = JobQueue()
        waiting = asyncio.create_task(queue.take(0, 10))
        await asyncio.sleep(0)
        job_id = await queue.submit(JOB)
        assert id_of(await waiting) == job_id
        waiting = asyncio.create_task(queue.take(0, 10))
        await asyncio.sleep(0)
        await queue.close()
        assert await waiting == "closed"

    run(scenario())


def test_jobs_that_still_wait_are_served_before_a_closed_queue_lets_go() -> None:
    async def scenario() -> None:
        queue = JobQueue()
        job_id = await queue.submit(JOB)
        await queue.close()
        assert await taken(queue, 0) == job_id
        assert await queue.take(0, 0.01) == "closed"

    run(scenario())


def test_closing_with_cancel_stops_what_runs_and_what_waits() -> None:
    async def scenario() -> None:
        queue = JobQueue()
        running, waiting = await queue.submit(JOB), await queue.submit(JOB)
        await queue.take(0, 0.01)
        await queue.close(cancel=True)
        assert await queue.is_cancelled(running)
        assert await events(queue, waiting) == [Cancelled()]
        assert await queue.take(0, 0.01) == "closed"

    run(scenario())


def test_cancelling_reaches_a_job_that_waits_runs_or_is_yet_to_come() -> None:
    async def scenario() -> None:
        queue = JobQueue()
        running, waiting = await queue.submit(JOB), await queue.submit(JOB)
        await queue.take(0, 0.01)
        await queue.cancel(waiting)
        assert await events(queue, waiting) == [Cancelled()]
        assert await queue.take(1, 0.01) is None
        assert not await queue.is_cancelled(running)
        await queue.cancel(running)
        assert await queue.is_cancelled(running)
        assert await queue.report(running, EPOCH)
        await queue.report(running, Cancelled())
        assert await events(queue, running) == [EPOCH, Cancelled()]
        await queue.cancel("later")
        await queue.submit(replace(JOB, job_id="later"))
        assert await events(queue, "later") == [Cancelled()]
        assert await queue.take(0, 0.01) is None

    run(scenario())


def test_a_dead_groups_job_comes_first_again_and_fails_after_max_failures() -> None:
    async def scenario() -> None:
        queue = JobQueue(max_failures=2)
        job_id, other = await queue.submit(JOB), await queue.submit(JOB)
        for death in range(3):
            assert await taken(queue, 0) == job_id, death
            await queue.register(0, UP)  # the group has started again
        *before, last = await events(queue, job_id)
        assert before == [Requeued(), Requeued()]
        assert isinstance(last, Failed)
        assert await taken(queue, 0) == other

    run(scenario())


def test_a_dead_groups_job_goes_to_another_group_and_hears_no_more_from_the_dead() -> None:
    async def scenario() -> None:
        queue = JobQueue(groups=2, max_failures=2)
        for group in range(2):
            await queue.register(group, GroupFacts(f"node{group}"))
        job_id = await queue.submit(JOB)
        assert await taken(queue, 0) == job_id
        await queue.worker_died(0, "SIGKILL")
        await queue.worker_died(0, "SIGKILL")  # told at each poll until the group is gone
        assert await queue.take(0, 0.01) is None, "what is left of a dying group takes no job"
        assert await taken(queue, 1) == job_id
        assert await queue.report(job_id, EPOCH, 0), "told to stop"
        assert not await queue.report(job_id, EPOCH, 1)
        await queue.report(job_id, DONE, 1)
        assert await events(queue, job_id) == [Requeued(), EPOCH, DONE]
        assert set(await queue.groups()) == {1}
        await queue.register(0, GroupFacts("node2"))
        told = [await queue.next_notice(0.01) for _ in range(3)]
        assert told[2] is None
        assert "group 0 lost a worker (SIGKILL)" in str(told[0])
        assert job_id in str(told[0])
        assert "group 0 is up again on node2" in str(told[1])

    run(scenario())


def test_that_layers_are_computed_again_is_told_once() -> None:
    async def scenario() -> None:
        queue = JobQueue(groups=2)
        for group in range(2):
            await queue.register(group, GroupFacts(f"node{group}", recomputes=True))
        assert "activation checkpointing is on" in str(await queue.next_notice(0.01))
        assert await queue.next_notice(0.01) is None

    run(scenario())


def test_only_groups_that_are_not_up_are_named_to_be_ended() -> None:
    async def scenario() -> None:
        queue = JobQueue(groups=3)
        for group in range(3):
            await queue.hold_controller(group, f"controller {group}")
        await queue.register(0, UP)
        await queue.register(1, UP)
        await queue.worker_died(1, "its node is gone")
        assert await queue.controllers(only_idle=True) == {1: "controller 1", 2: "controller 2"}
        assert set(await queue.controllers(only_idle=False)) == {0, 1, 2}

    run(scenario())


def test_another_groups_start_leaves_a_running_job_alone() -> None:
    async def scenario() -> None:
        queue = JobQueue()
        job_id = await queue.submit(JOB)
        await queue.take(0, 0.01)
        await queue.register(1, UP)
        assert await queue.take(1, 0.01) is None
        assert await events(queue, job_id) == []

    run(scenario())


def test_when_the_last_group_is_lost_nobody_waits_for_ever() -> None:
    async def scenario() -> None:
        queue = JobQueue()
        await queue.register(0, UP)
        running, waiting = await queue.submit(JOB), await queue.submit(JOB)
        await queue.take(0, 0.01)
        await queue.group_lost(0, "no disk")
        for job_id in (running, waiting):
            assert await queue.next_event(job_id, 0.01) == Failed("no disk")
        late = await queue.submit(JOB)
        assert await queue.next_event(late, 0.01) == Failed("no disk")

    run(scenario())


def test_one_lost_group_of_two_leaves_the_work_to_the_other() -> None:
    async def scenario() -> None:
        queue = JobQueue(groups=2)
        job_id = await queue.submit(JOB)
        await queue.group_lost(0, "no disk")  # before the other has even started
        assert await events(queue, job_id) == []
        await queue.register(1, UP)
        assert await taken(queue, 1) == job_id

    run(scenario())


@pytest.mark.parametrize("size", [1, 3])
def test_a_group_that_only_ever_starts_is_given_up(size: int) -> None:
    async def scenario() -> None:
        queue = JobQueue()
        job_id = await queue.submit(JOB)
        for _ in range(MAX_IDLE_STARTS * size):
            assert await queue.starting(0, size)
        assert not await queue.starting(0, size)
        assert isinstance(await queue.next_event(job_id, 0.01), Failed)

    run(scenario())


def test_what_a_job_leaves_is_collected_once() -> None:
    async def scenario() -> None:
        queue = JobQueue()
        job_id = await queue.submit(JOB)
        await queue.take(0, 0.01)
        await queue.leave(job_id, b"weights")
        await queue.report(job_id, DONE)
        await queue.leave(job_id, b"too late")
        assert await queue.collect(job_id) == b"weights"
        assert await queue.collect(job_id) is None
        assert await queue.collect("never-heard-of") is None

    run(scenario())


def test_a_worker_that_hangs_is_said_once_with_its_trial_and_again_when_it_goes_on() -> None:
    async def scenario() -> None:
        queue = JobQueue(groups=2, silent_s=0.3)
        workers = {(0, 0): 40, (0, 1): 41, (1, 0): 42}

        async def beats(*which: tuple[int, int]) -> None:
            for group, rank in which:
                pid = workers[group, rank]
                await queue.beat(group, rank, GroupFacts("node", pid))

        for group in (0, 1):
            await queue.register(group, UP)
        await queue.submit(replace(JOB, job_id="trial-00003"))
        await taken(queue, 0)
        for _ in range(5):
            await beats(*workers)
            await asyncio.sleep(0.1)
            assert await queue.next_notice(0) is None
        for _ in range(4):
            await beats((0, 0), (1, 0))
            await asyncio.sleep(0.1)
        notice = await queue.next_notice(0)
        assert notice is not None
        assert notice.startswith("group 0: its worker on node (process 41) has given no sign of")
        assert " s in trial 3; " in notice
        assert await queue.next_notice(0) is None, "once"
        await beats(*workers)
        again = await queue.next_notice(0)
        assert again is not None
        assert again.startswith("group 0: its worker on node goes on after")

        # One that has died was told of otherwise, and gives no signs any more.
        await queue.worker_died(0, "killed")
        assert "lost a worker" in str(await queue.next_notice(0))
        await asyncio.sleep(0.4)
        await beats((1, 0))
        assert await queue.next_notice(0) is None

    run(scenario())


def test_the_queue_knows_when_a_job_was_first_taken() -> None:
    async def scenario() -> None:
        queue = JobQueue()
        one, two = await queue.submit(JOB), await queue.submit(JOB)
        assert await queue.begun() == {}
        before = time.time()
        await taken(queue, 0)
        begun = await queue.begun()
        assert list(begun) == [one]
        assert before <= begun[one] <= time.time()
        await queue.worker_died(0, "killed")
        await queue.register(0, UP)
        assert await taken(queue, 0) == one
        assert await queue.begun() == {}, "it had begun before"
        await queue.report(one, DONE)
        await taken(queue, 0)
        assert list(await queue.begun()) == [two]

    run(scenario())


def test_a_running_job_is_asked_once_for_what_it_has_trained_so_far() -> None:
    async def scenario() -> None:
        queue = JobQueue()
        job = await queue.submit(JOB)
        assert await queue.ask_so_far(job)
        assert await queue.collect_so_far(job) == (None, True)
        await taken(queue, 0)
        assert await queue.is_asked(job)
        await queue.leave_so_far(job, b"weights")
        assert not await queue.is_asked(job)
        await queue.report(job, DONE)
        assert await queue.collect_so_far(job) == (b"weights", False)
        assert await queue.collect_so_far(job) == (None, False)
        assert not await queue.ask_so_far(job)
        assert not await queue.ask_so_far("trial-00099")

    run(scenario())
