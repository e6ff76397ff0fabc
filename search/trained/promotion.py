"""The champion of a task on a base: promoted only where it beats the present one beyond the noise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Promotion:
    """What came of asking whether a run is to be the champion of its task and base.

    `reason` is one line for people, of a refusal too. `difference` is the run's mean on test minus
    the champion's, in the direction that is better, with the 95 % interval [`low`, `high`]; None
    where there was no champion, or nothing to compare by.
    """

    promoted: bool
    reason: str
    model: str
    """Name of the registered model, `<task>-<base name>`."""
    version: int | None
    """The version that is champion now; None where there is none."""
    run_id: str
    metric: str
    value: float | None
    """Mean over seeds on test, where it was confirmed."""
    difference: float | None = None
    low: float | None = None
    high: float | None = None


def promote(tracking_uri: str, run_id: str, *, even_if_not_better: bool = False) -> Promotion:
    """Register a run's model, and make it the champion where it is better beyond the noise."""
    raise NotImplementedError


def promote_best_of(tracking_uri: str, sweep: str) -> Promotion:
    """`promote` of the best confirmed choice of a sweep, which is its name or its run id."""
    raise NotImplementedError
