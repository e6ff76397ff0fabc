"""Jobs, and the events that tell how they go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from spaces.errors import JobError

POLL_S = 5.0  # rank 0 asks again after this long; the other ranks wait in a broadcast meanwhile
Event = dict[str, Any]
Job = dict[str, Any]
State = Literal["waiting", "running", "over"]


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
