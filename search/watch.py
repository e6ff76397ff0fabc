"""What is looked for in a thread, while something else is done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LEAVE_S = 5.0  # whoever closes it waits no longer for a look that goes on


@contextmanager
def looking(look: Callable[[], bool], every_s: float, name: str) -> Iterator[None]:
    """While open, a thread called `name` looks every `every_s` seconds, until `look` says True."""
    left = threading.Event()

    def go_on() -> None:
        while not left.wait(every_s):
            if look():
                return

    thread = threading.Thread(target=go_on, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join(LEAVE_S)
