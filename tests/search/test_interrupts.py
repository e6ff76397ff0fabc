"""What a launch hears of Ctrl-C and of the signals that count as it."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from search.interrupts import ONE_S, Interrupts


def signalled(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python hears it between two instructions


def test_a_signal_to_the_process_and_its_group_is_one_and_another_is_a_second() -> None:
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signalled(signal.SIGTERM)
        signalled(signal.SIGTERM)
        assert interrupts.heard
        assert not interrupts.hurried
        time.sleep(1.5 * ONE_S)
        signalled(signal.SIGTERM)
        assert interrupts.hurried


def test_what_follows_an_interrupt_is_done_while_the_main_thread_is_busy() -> None:
    done = threading.Event()
    with Interrupts() as interrupts, interrupts.deferred():
        with interrupts.followed_by(done.set):
            assert not done.wait(2 * ONE_S)
            signalled(signal.SIGTERM)
            assert done.wait(30)
        done.clear()
        with interrupts.followed_by(done.set):
            assert done.wait(30), "it was heard before"


def test_one_that_is_deferred_is_only_noted() -> None:
    with Interrupts() as interrupts, interrupts.deferred():
        signalled(signal.SIGINT)
        assert interrupts.heard
