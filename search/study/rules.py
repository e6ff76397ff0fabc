"""What all trials of a search have in common, and who is given how many of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from search.config.sweep import SweepConfig
from search.objective import Objective

Division = Literal["equal", "free"]


@dataclass(frozen=True)
class Rules:
    """A sweep's sections `search` and `train`, as far as the study follows them."""

    objective: Objective
    """The reported metric that Tune's scheduler looks at."""
    objectives: tuple[str, ...]
    """What the study optimizes: reported metrics or ``trainable_params``."""
    epochs: int
    """How many epochs a full trial has."""
    trials: int
    """How many to hand out, those of an earlier run of the study included."""
    max_params: int | None = None
    """No plan with more trainable parameters is handed out."""
    division: Division = "equal"
    """``equal``: each trial goes to the arm with the fewest; ``free``: the sampler chooses the
    method."""
    arms: tuple[str, ...] = ()
    """Keys whose every value is given trials of its own, as if it were a method."""
    seed: int = 0
    """The one to train with."""
    repeats: tuple[int, int] | None = None
    """(top, seeds): the last top * seeds trials train the best choices so far again, each with so
    many other seeds."""

    @classmethod
    def of(cls, config: SweepConfig) -> Rules:
        """Those that a sweep has written."""
        search, repeats = config.search, config.search.repeats
        return cls(
            config.objective,
            search.objectives,
            config.train.epochs,
            search.trials,
            max_params=search.max_params,
            division=search.allocation,
            arms=search.arms,
            seed=config.train.seed,
            repeats=(repeats.top, repeats.seeds) if repeats else None,
        )

    @property
    def repetitions(self) -> int:
        """How many trials at the end repeat others."""
        return self.repeats[0] * self.repeats[1] if self.repeats else 0

    def fits(self, params: float) -> bool:
        """Whether a plan may have so many trainable parameters."""
        return self.max_params is None or params <= self.max_params
