"""Who hears of a training job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Observer:
    """Hears, on every worker, how a training job goes, and may stop it; this one does neither.

    One that keeps the state of a job of one stage can have it go on where it was.
    """

    steps_done: int = 0
    """Optimizer steps that were trained before: their rows are passed over."""

    def restore(self, engine: Any, schedule: Any) -> None:
        """Called once, with the engine and learning-rate schedule that train the first step."""

    def on_ready(self) -> None:
        """Called once, before the first forward pass that trains: engine and batch are ready."""

    def keep(self, step: int, engine: Any, schedule: Any) -> None:
        """Called after every step, before `on_step`, with the number of steps done."""

    def on_step(self, step: int, steps: int, learning_rate: float) -> None:
        """Called after every step with how many of the job's `steps` are done, and the learning
        rate (of scale 1) that the last was trained with."""

    def should_stop(self) -> bool:
        """Asked after a step (every few of them where there are several workers), where rank 0's
        answer counts, and between what is written when a split is measured, where any rank's
        does."""
        return False

    def on_losses(self, losses: Sequence[tuple[int, float]]) -> None:
        """Called after every epoch, before `on_epoch`, with the training loss within it: pairs of
        the steps done and the mean loss of a target since the pair before."""

    def on_epoch(self, epoch: int, report: dict[str, float]) -> None:
        """Called after every epoch, the first is 1, with its report."""
