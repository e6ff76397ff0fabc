"""What is known of a trial on its way: proposed, open, ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from spaces.choice import Choice
from spaces.plan import Plan

EndState = Literal["complete", "pruned", "failed", "cancelled"]


@dataclass(frozen=True)
class Proposal:
    """What a trial is to be: its parameters, what they stand for, and whom it repeats or equals."""

    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    choice: Choice
    plan: Plan
    arm: str
    seed: int
    repeat: int = 0
    answer: FrozenTrial | None = None
    """A complete trial that is the same training."""
    of: int | None = None
    """Number of the trial whose choice is repeated."""


@dataclass(frozen=True)
class EndedTrial:
    """What became of one trial; `values` in the order of the study's objectives."""

    number: int
    choice: Choice
    state: EndState
    values: tuple[float, ...] | None = None
    reason: str | None = None


@dataclass
class OpenTrial:
    """A trial that Tune holds; `curve` maps an epoch (from 1) to what it reported.

    `repeat` is 0, or which repetition of its choice it is.
    """

    trial: optuna.trial.Trial
    choice: Choice
    plan: Plan
    seed: int
    repeat: int
    curve: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Optuna's number of the trial."""
        return int(self.trial.number)

    def ended(
        self,
        state: EndState,
        reason: str | None = None,
        values: tuple[float, ...] | None = None,
    ) -> EndedTrial:
        """What has become of it."""
        return EndedTrial(self.number, self.choice, state, values, reason)
