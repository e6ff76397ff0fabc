"""A Ray of our own ends with its launch, and not before it.

Who ends a launch may signal its whole process group, as GNU timeout and shells do. Ray's processes
would end at once, and the launch would have nobody to cancel its trials with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ray._private import services


@contextmanager
def groups_of_their_own() -> Iterator[None]:
    """While open, each process that Ray starts leads a process group of its own.

    Ray has no setting for it. They still die with this process, as Ray arranges it.
    """
    before = services.ConsolePopen
    services.ConsolePopen = partial(before, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = before
