"""What a launch tells of itself while it runs, to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Hears how a sweep goes; its methods may be called from any thread.

    A trial is known by its number, and one that is trained again for the confirmation by its seed
    as well.
    """

    listener: Callable[[str], object] | None
    """Hears all that is told as a line, but how far a step or a trial is; a launch keeps it in its
    log."""

    def stage(self, name: str, detail: str = "", trials: int = 0, later: int = 0) -> None:
        """The sweep has come to a stage: "profile", "search", "confirm".

        It has so many `trials` before it, and what follows it so many `later`.
        """

    def profile_step(self, done: int, total: int, learning_rate: float | None = None) -> None:
        """`done` of the `total` steps of a phase of the profile are over."""

    def trial_started(
        self, number: int, method: str, params: int | None = None, seed: int | None = None
    ) -> None:
        """A trial of `method` has started; its plan trains `params` parameters."""

    def one_more_trial(self) -> None:
        """A trial is about to start that is none of those that the stage had before it."""

    def trial_steps(
        self,
        number: int,
        done: int,
        total: int,
        learning_rate: float | None = None,
        seed: int | None = None,
        rows: float = 1.0,
    ) -> None:
        """A running trial has done so many of its steps, those on a share `rows` of the rows."""

    def trial_look(self, number: int, share: float, value: float | None) -> None:
        """A trial has this dev value after training on a share of the rows."""

    def trial_epoch(
        self, number: int, epoch: int, epochs: int, value: float | None, collapsed: bool = False
    ) -> None:
        """A trial has finished `epoch` of its `epochs` with this dev value; `collapsed` says that
        it predicts one class alone."""

    def trial_finished(
        self,
        number: int,
        state: str,
        value: float | None = None,
        seed: int | None = None,
        collapsed: bool = False,
    ) -> None:
        """A trial is over: complete, pruned, failed, stopped or cancelled."""

    def best(self, number: int, method: str, value: float, params: int | None = None) -> None:
        """The best choice so far, by what it holds over its seeds."""

    def message(self, text: str) -> None:
        """Anything else that a user should see, on one line."""
