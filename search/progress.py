"""What a launch tells of itself while it runs, to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Hears how a sweep goes; its methods may be called from any thread."""

    listener: Callable[[str], object] | None
    """Hears every message as well; a launch keeps them in its log."""

    def stage(self, name: str, detail: str = "") -> None:
        """The sweep has come to a stage: "profile", "search", "confirm"."""

    def profile_step(self, done: int, total: int) -> None:
        """`done` of the profile's `total` steps are over."""

    def trial_started(self, number: int, method: str, params: int | None = None) -> None:
        """A trial of `method` has started; its plan trains `params` parameters."""

    def trial_epoch(self, number: int, epoch: int, epochs: int, value: float | None) -> None:
        """A trial has finished `epoch` of its `epochs` with this dev value."""

    def trial_finished(self, number: int, state: str, value: float | None = None) -> None:
        """A trial is over: complete, pruned, failed or cancelled."""

    def best(self, number: int, method: str, value: float, params: int | None = None) -> None:
        """The best trial that has run to its end so far."""

    def message(self, text: str) -> None:
        """Anything else that a user should see, on one line."""
