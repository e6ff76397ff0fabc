"""Stands between a scheduler and a sweep, and ends the sweep where the scheduler may not go on.

Run as a program: `guard.py INTERRUPT_S KILL_S COMMAND...`. A scheduler that owns the sweep's claim
writes a byte to the standard input at every beat. Where none came for INTERRUPT_S seconds, or the
scheduler is gone, the command is interrupted, and killed KILL_S seconds after the last byte. Both
are less than the time after which another scheduler takes over, so a sweep is never run twice at
once, be its scheduler killed, paused or cut off from the store. It ends with the command's exit
code. It imports nothing of the house: it must be there at once, and be small.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType

LOOK_S = 0.2
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit code, 128 and the number of a signal that ended it."""
    interrupt_s, kill_s = float(arguments[0]), float(arguments[1])
    me = os.getpid()
    child = subprocess.Popen(
        arguments[2:],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: _end_with(me),  # noqa: PLW1509 (this process has one thread)
    )

    def forward(_number: int, _frame: FrameType | None) -> None:
        _interrupt(child)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)
    heard, is_open, told = _now(), True, False
    while child.poll() is None:
        if is_open:
            if select.select([0], [], [], LOOK_S)[0]:
                is_open = bool(os.read(0, 4096))
                heard = _now() if is_open else heard
        else:
            time.sleep(LOOK_S)
        silent = _now() - heard
        if not told and (not is_open or silent > interrupt_s):
            told = True
            _say("its scheduler does not own it any more, and it is stopped")
            _interrupt(child)
        if told and silent > kill_s:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _now() -> float:
    """Seconds that also pass while the machine sleeps, as they do for the other schedulers."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _end_with(parent: int) -> None:
    """Have this process interrupted when its parent dies, of whatever."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)


def _interrupt(child: subprocess.Popen[bytes]) -> None:
    # The command alone, as Ctrl-C of a launch: what it has started it ends itself.
    with suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"schedule: {text}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
