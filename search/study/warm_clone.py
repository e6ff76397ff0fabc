"""A clone that starts from the trained weights of the trial that it is of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import optuna

from search.study.requests import Request
from search.study.study import CHOICE, DRIVER, RUN_ID, choice_of, ended_as
from spaces.choice import Choice
from spaces.errors import UsageError
from spaces.plan import Plan


@dataclass(frozen=True)
class Source:
    """The trial that a clone is of; `state` is how it has ended, None while it trains.

    `run_id` is that of its run in MLflow, `driver` whose trial it is where several share a study.
    """

    number: int
    choice: Choice
    state: str | None
    run_id: str | None
    driver: str | None

    @classmethod
    def of(cls, study: optuna.Study, request: Request) -> Source | None:
        """That of a request; None where it asks for no clone, or there is no such trial."""
        number, trials = request.number, study.get_trials(deepcopy=False)
        if request.kind != "clone" or number is None or not 0 <= number < len(trials):
            return None
        attributes = trials[number].user_attrs
        if CHOICE not in attributes:
            return None
        return cls(
            number,
            choice_of(trials[number]),
            ended_as(trials[number]),
            attributes.get(RUN_ID),
            attributes.get(DRIVER),
        )


class WarmWeights(Protocol):
    """Who has the trained weights that a warm clone starts from."""

    def agree(self, source: Source, plan: Plan) -> str:
        """How much of `plan` can start from a trial's weights, in words.

        Raises UsageError where nothing can, or the trial has no weights.
        """

    def file(self, request: Request, source: Source, plan: Plan) -> Path | None:
        """The file of the weights that `plan` starts from; None while they are on their way.

        Raises UsageError where they cannot be had.
        """

    def close(self, over: Collection[str]) -> None:
        """Fetch no more, and drop what was fetched for the requests that are `over`."""


class NoWarmWeights(WarmWeights):
    """Has none."""

    def agree(self, source: Source, plan: Plan) -> str:
        raise UsageError("--warm: this driver keeps no weights; clone the trial without --warm")

    def file(self, request: Request, source: Source, plan: Plan) -> Path | None:
        self.agree(source, plan)
        return None

    def close(self, over: Collection[str]) -> None:
        return
