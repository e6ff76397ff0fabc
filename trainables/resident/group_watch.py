"""What Ray Train's controller of a group tells the job queue: its own handle, and every death.

A new group registers with the queue when it has started; until then, and for ever where its node
does not come back, only the controller knows that a worker is gone.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from trainables.resident.causes import why


class GroupWatch(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Runs in the controller's process; these are the hooks that Ray calls."""

    def __init__(self, queue: Any, group: int) -> None:
        self._queue, self._group = queue, group

    def after_controller_start(self, train_run_context: Any) -> None:
        """The controller is up."""
        here = ray.get_runtime_context().current_actor
        self._queue.hold_controller.remote(self._group, here)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """The workers were asked how they are, as every second or so."""
        errors = worker_group_status.errors
        if errors:
            reason = why(next(iter(errors.values()))).rstrip(".")
            self._queue.worker_died.remote(self._group, reason)
