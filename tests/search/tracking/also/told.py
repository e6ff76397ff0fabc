"""Runs in a journal, as a launch writes them, for those who are told of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from search.tracking.also.feed import Feed
from search.tracking.also.listener import Listener
from search.tracking.journal import Journal, end_of_trial

CHOICE = {
    "method": "pilora",
    "seed": 0,
    "learning_rate": 1e-3,
    "rank": 8,
    "partition": {"rule": "hits", "threshold": 0.1},
}
COUNTS = {"trainable_params": 320.0}
SECOND = 1000


def start(journal: Journal, number: int, at_s: int, seed: int | None = None) -> None:
    """Of trial `number`, or with a seed of a confirmation of trial 0."""
    body: dict[str, Any] = {"choice": CHOICE, "tags": {"arm": "narrow"}, "metrics": COUNTS}
    if seed is None:
        journal.start(number, body, at_s * SECOND)
    else:
        body |= {"kind": "confirm", "number": 0, "tags": {"arm": "narrow", "seed": seed}}
        journal.start(number, body, at_s * SECOND, (0, seed))


def look(journal: Journal, number: int, at_s: int) -> None:
    journal.look(number, {"metrics": {"look_0.1": 0.4}}, at_s * SECOND)


def epoch(journal: Journal, number: int, epoch: int, at_s: int, accuracy: float) -> None:
    journal.epoch(number, epoch, {"metrics": {"accuracy": accuracy}}, at_s * SECOND)


def end(journal: Journal, number: int, at_s: int, state: str, error: str | None = None) -> None:
    journal.end(number, end_of_trial(state, error, {}), at_s * SECOND)


def told(
    folder: Path, make: Callable[[], Listener], *steps: Callable[[Journal], None]
) -> list[str]:
    """What is said while a launch of the sweep in `folder` goes these steps."""
    said: list[str] = []
    journal = Journal(folder / "journal.db")
    feed = Feed(journal, "listener", make, said.append, pause_s=0.01)
    for step in steps:
        step(journal)
    feed.close()
    journal.close()
    return said
