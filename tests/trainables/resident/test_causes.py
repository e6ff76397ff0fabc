"""The reason of a group that cannot start is what was raised first, with the node it was on."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, RaySystemError, RayTaskError
from ray.train import TrainingFailedError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from trainables.resident.causes import why

# As Ray words it where a node cannot read what it is sent (2.60).
UNREADABLE = """\x1b[36mray::RayTrainWorker.init_train_context()\x1b[39m (pid=1308, ip=10.0.0.7, \
actor_id=25, repr=<RayTrainWorker object>)
  At least one of the input arguments for this task could not be computed:
ray.exceptions.RaySystemError: System error: No module named 'trainables'
traceback: Traceback (most recent call last):
          ^^^^^^^^^^^^^^^^
  File "/somewhere/pickle.py", line 1, in <module>
    return pickle.loads(data)
ModuleNotFoundError: No module named 'trainables'"""


def of_a_task(text: str, cause: Exception) -> RayTaskError:
    return RayTaskError("f", text, cause, proctitle="ray::f()", pid=1, ip="10.0.0.7")


CASES = [
    (
        ControllerError(RaySystemError(UNREADABLE)),
        "on node 10.0.0.7: ModuleNotFoundError: No module named 'trainables'; install this "
        "ranksweep on every node",
    ),
    (
        ControllerError(of_a_task("Traceback (most recent call last):\n", OSError(28, "No space"))),
        "on node 10.0.0.7: OSError: [Errno 28] No space",
    ),
    (
        WorkerGroupError("2 workers failed", {1: ValueError("bad\nrows")}),
        "ValueError: bad",
    ),
    (TrainingFailedError(), "TrainingFailedError"),
    (RuntimeError("plain"), "RuntimeError: plain"),
]


@pytest.mark.parametrize(("failure", "told"), CASES, ids=range(len(CASES)))
def test_the_first_cause_is_told_in_one_line(failure: Exception, told: str) -> None:
    assert why(failure) == told


def test_a_dead_worker_is_told_without_a_dump() -> None:
    found = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
    line = why(WorkerGroupError("1 worker failed", {0: found}))
    assert line.startswith("ActorDiedError: ")
    assert "\n" not in line


def test_what_a_worker_raised_is_told_without_its_traceback() -> None:
    text = "Traceback (most recent call last):\n  File 'x'\nOSError: [Errno 28] No space"
    found = UserExceptionWithTraceback(OSError(28, "No space"), text)
    assert why(WorkerGroupError("1 worker failed", {0: found})) == "OSError: [Errno 28] No space"
