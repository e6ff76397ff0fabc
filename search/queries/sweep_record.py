"""All that MLflow has of one sweep, read once: what its report is drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search.objective import Objective
from search.queries.best_choice import BestChoice
from search.queries.comparison import Comparison
from search.tracking.facts import RunFacts


@dataclass(frozen=True)
class CurvePoint:
    """The metric on dev at a moment of a training; `epoch` counts from its start and may be broken
    (a look within an epoch), `at_ms` is in milliseconds of Unix time."""

    epoch: float
    value: float
    at_ms: int


@dataclass(frozen=True)
class SweepRecord:
    """One sweep as MLflow has it.

    `config` is its file as it was launched, without credentials, and `told` what was told of its
    rows (`task.json`); both are empty where they were not kept. `trials` are its trials in whatever
    state, by number, each number once; `confirmations` are the complete ones, by number and seed.
    `best` is the best choice of each arm, best first. `comparison` is None where nothing was
    confirmed. `curves` has the metric on dev over the epochs, by run id: of every trial where they
    are few, else of those that stand out. `profile` is the run of its profile, `base` what was
    measured of the untouched base; None where there is none.
    """

    run: RunFacts
    objective: Objective
    config: Mapping[str, Any]
    told: Mapping[str, Any]
    trials: tuple[RunFacts, ...]
    confirmations: tuple[RunFacts, ...]
    best: tuple[BestChoice, ...]
    comparison: Comparison | None
    curves: Mapping[str, tuple[CurvePoint, ...]]
    profile: RunFacts | None
    base: RunFacts | None

    @property
    def seconds(self) -> dict[str, float]:
        """Stage of its last launch -> seconds it took: prepare, profile, search, confirm."""
        return {
            name.removeprefix("seconds."): value
            for name, value in self.run.metrics.items()
            if name.startswith("seconds.")
        }
