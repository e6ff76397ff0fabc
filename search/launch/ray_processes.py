"""A Ray of our own: it ends with its launch and not before it, and where it does the launch hears.

Who ends a launch may signal its whole process group, as GNU timeout and shells do. Ray's processes
would end at once, and the launch would have nobody to cancel its trials with. What takes them all
the same, such as a machine that is out of memory, Ray tells its driver after a minute, with a trace
of its own stack, and ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ray._private import services, worker

from search.watch import looking

LOOK_S = 0.1
"""Before Ray itself finds it and prints the end of its log."""
VITAL = ("raylet", "gcs_server")


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


@contextmanager
def watched(on_death: Callable[[str], None], node: Any = None) -> Iterator[None]:
    """While open, `on_death` hears from a thread once a process dies that Ray cannot be without.

    `node` is what Ray knows of the processes that it has started; by default this process's own.
    """
    node = worker._global_node if node is None else node

    def look() -> bool:
        dead = [(kind, process) for kind, process in node.dead_processes() if kind in VITAL]
        if dead:
            kind, process = dead[0]
            on_death(f"{kind}, {_ended(process.returncode)}")
        return bool(dead)

    with looking(look, LOOK_S, "ray watch"):
        yield


def _ended(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
