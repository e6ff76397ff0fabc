"""Sweeps of the toy base as their launches record them, with values by a formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from search.surrogate.draws import Drawn, draws
from search.surrogate.observation import recorded_features
from search.tracking.facts import at_step
from search.tracking.tracker import Tracker
from spaces.plan import Plan
from spaces.planner import Planner
from spaces.search_space import SearchSpace
from tests.search.toy_search import TARGETS, toy_profile, toy_space

PLANNER = Planner(TARGETS, toy_profile())
TASK, BASE = "t" * 64, "b" * 64
NOISE = 0.004


def hill(features: Mapping[str, float]) -> float:
    """Accuracy, best at a learning rate of 3e-3, whatever the plan."""
    return 0.8 - 0.1 * (features["log10_learning_rate"] + 2.5) ** 2


def some_choices(count: int, space: SearchSpace | None = None, seed: int = 0) -> list[Drawn]:
    """Choices of the toy space, the arms in turn."""
    space = space or toy_space()
    return draws(space, PLANNER, space.arms(()), plans=count, rates=1, seed=seed)


class RecordedSweep:
    """A sweep in an MLflow database, written by the tracker that launches use."""

    def __init__(
        self,
        database: str,
        name: str = "toy",
        *,
        task: str = TASK,
        base: str = BASE,
        config: Mapping[str, Any] | None = None,
        **tags: Any,
    ) -> None:
        told = {
            "task": "movie",
            "task_fingerprint": task,
            "base": base,
            "metric": "accuracy",
            "mode": "max",
        }
        self.tracker = Tracker(database, "movie")
        self.run_id = self.tracker.start_sweep(name, config or {}, {**told, **tags})
        self._rng = np.random.default_rng(0)
        self.written = 0

    def trial(
        self,
        drawn: Drawn,
        value: float | None = None,
        state: Any = "complete",
        *,
        metric: str = "accuracy",
        says_features: bool = True,
        **tags: Any,
    ) -> float:
        """Records a trial of a choice, by default as good as the hill says; returns its value."""
        plan: Plan = PLANNER.plan(drawn.choice)
        if value is None:
            value = hill(drawn.features) + NOISE * float(self._rng.standard_normal())
        if says_features:
            features = recorded_features(plan, drawn.choice.learning_rate, PLANNER.profile)
            tags["features"] = features
        run = self.tracker.open_trial(
            self.run_id,
            self.written,
            drawn.choice.as_dict(),
            {"arm": drawn.arm, "plan_digest": plan.digest, **tags},
        )
        self.written += 1
        counts = at_step({"trainable_params": float(plan.trainable_params), metric: value}, 3)
        self.tracker.log(run, metrics=counts)
        self.tracker.end(run, state)
        return value
