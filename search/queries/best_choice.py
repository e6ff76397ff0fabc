"""The best choice of a method or an arm, as whoever searches and whoever reads MLflow has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BestChoice:
    """A method's or an arm's best choice.

    `value` is the mean over `seeds` trials of the choice, `values` are theirs, and `holds` is the
    lower bound of it that ranks (search/queries/holding.py); `collapsed` counts the seeds that
    predict one class alone. A choice that was answered from another arm's trial has the number and
    the run of that trial.
    """

    method: str
    arm: str
    value: float
    values: list[float]
    seeds: int
    trainable_params: int
    number: int
    run_id: str | None
    choice: dict[str, Any]
    holds: float = float("nan")
    collapsed: int = 0
