"""What is known of a trial on its way: proposed, open, ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from spaces.choice import Choice
from spaces.plan import Plan

EndState = Literal["complete", "pruned", "failed", "cancelled", "stopped"]
"""`cancelled` is what is cut off and trained again by the next launch, `stopped` what a user has
ended."""


@dataclass(frozen=True)
class Asked:
    """What a user has asked to be trained: which request it is, and of which trial it is a clone.

    `warm` is the file of weights that it starts from, those of the trial that it is a clone of.
    """

    request: str
    clone_of: int | None = None
    warm: Path | None = None

    @property
    def by(self) -> str:
        """How it was asked for, as a record of it says."""
        return "enqueued" if self.clone_of is None else "cloned"

    @property
    def warm_from(self) -> int | None:
        """Number of the trial whose weights it starts from."""
        return None if self.warm is None else self.clone_of


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
    asked: Asked | None = None
    """Set where a user has asked for it."""


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
    """A trial that Tune holds; `curve` maps an epoch (from 1) to what it reported, `looks` a share
    of the training rows to the metric after training on it first.

    `repeat` is 0, or which repetition of its choice it is.
    """

    trial: optuna.trial.Trial
    choice: Choice
    plan: Plan
    seed: int
    repeat: int
    asked: Asked | None = None
    features: Mapping[str, float] = field(default_factory=dict)
    """Those of its plan, as records of it say them."""
    curve: dict[int, dict[str, float]] = field(default_factory=dict)
    looks: dict[float, float] = field(default_factory=dict)

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
