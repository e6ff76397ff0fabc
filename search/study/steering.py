"""What users ask of a sweep that runs, as its driver hears it.

The driver looks into the study every couple of seconds at most. What it is asked to train it
judges at once, and begins when a place is free; what it is asked to stop it stops.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Container
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial, TrialState

from search.config.sweep import SearchSettings
from search.study.requests import (
    LISTENS_EVERY_S,
    Answer,
    Request,
    answer,
    answers_of,
    listen,
    listen_no_more,
    listeners_of,
    requests_of,
)
from search.study.sampling import Snapshot
from search.study.standing import Standing, training_of
from search.study.study import (
    CHOICE,
    DRIVER,
    INTERRUPTED,
    REQUEST,
    RUN_ID,
    STOPPED,
    choice_of,
    ended_as,
)
from search.study.trial import Asked, OpenTrial, Proposal
from search.tracking.facts import flattened
from spaces.choice import Choice
from spaces.errors import ChoiceError, UsageError
from spaces.methods.registry import from_record
from spaces.plan import Plan
from spaces.planner import Planner
from spaces.search_space import SearchSpace

logger = logging.getLogger(__name__)

#: How often the study is asked for requests.
LOOK_S = 2.0
BY_USER = "stopped by `ranksweep trials stop`"


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


class Steering:
    """The requests in a study, for one driver of it.

    Args:
        study: the study.
        folder: that of the sweep, for whoever wants to know who listens.
        driver: the driver's name where others have the same study; else None.
        warm: has the weights that clones start from.
        say: is told in a line what a user may want to know.
        more: is called when a trial begins that is none of `search.trials`.
        clock: gives seconds.
    """

    def __init__(
        self,
        study: optuna.Study,
        folder: str,
        *,
        driver: str | None = None,
        warm: WarmWeights | None = None,
        say: Callable[[str], object] = logger.info,
        more: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study, self._folder, self._driver = study, folder, driver
        self.warm = warm or NoWarmWeights()
        self._say, self._more, self._clock = say, more, clock
        self._looked = self._listened = -float("inf")
        self._requests: list[Request] = []
        self._answers: dict[str, Answer] = {}
        self._judged: set[str] = set()
        self._others: set[str] = set()
        self.waits = False
        """Whether what is to be trained waits for its weights."""

    def look(self) -> bool:
        """Read what the study says now, if it is time to; whether anything is new."""
        now = self._clock()
        if now >= self._listened + LISTENS_EVERY_S:
            self._listened = now
            listen(self._study, self._folder)
        if now < self._looked + LOOK_S:
            return False
        self._looked = now
        attributes = self._study.user_attrs
        self._requests, self._answers = requests_of(attributes), answers_of(attributes)
        fresh = (each for each in listeners_of(attributes) if each.is_fresh())
        self._others = {f"{each.host}:{each.folder}" for each in fresh}
        return any(request.id not in self._answers for request in self._requests)

    def close(self) -> None:
        """Say that nobody listens here any more, and drop what no trial starts from again."""
        self.warm.close(over_requests(self._study))
        listen_no_more(self._study, self._folder)

    def to_stop(self) -> list[Request]:
        """The requests to stop a trial that have no answer."""
        return [
            each for each in self._requests if each.kind == "stop" and each.id not in self._answers
        ]

    def to_train(self, begun: Container[str]) -> list[Request]:
        """What is to be trained, the oldest request first: neither refused nor `begun`."""
        return [
            each
            for each in self._requests
            if each.kind != "stop" and each.id not in begun and not self._is_refused(each)
        ]

    def is_judged(self, request: Request) -> bool:
        """Whether this driver has accepted the request before."""
        return request.id in self._judged

    def is_left_to_another(self, request: Request, source: Source) -> bool:
        """Whether the driver that has trained the source of a warm clone lives, and is another."""
        is_own = self._driver is None or source.driver in (None, self._driver)
        return request.warm and not is_own and source.driver in self._others

    def accept(self, request: Request, reason: str = "") -> None:
        """Tell who asks that it is done, or will be."""
        self._judged.add(request.id)
        if request.id not in self._answers:
            self._answer(request, Answer(accepted=True, reason=reason))
            self._say(f"asked by {request.by}: {request.in_words}{reason and f' ({reason})'}")

    def refuse(self, request: Request, reason: str) -> None:
        """Tell who asks why it is not done."""
        self._answer(request, Answer(accepted=False, reason=reason))
        self._say(f"asked by {request.by}: {request.in_words}; refused: {reason}")

    def refuse_where_over(self, request: Request) -> None:
        """Refuse to stop a trial that this driver does not have, unless another has it."""
        trials = self._study.get_trials(deepcopy=False)
        number = -1 if request.number is None else request.number
        if not 0 <= number < len(trials):
            self.refuse(request, f"there is no trial {number}")
        elif (state := ended_as(trials[number])) is not None:
            self.refuse(request, f"trial {number} has ended ({state})")

    def has_begun(self, begun: OpenTrial, request: str) -> None:
        """A trial was begun for the request of this id."""
        self._more()
        asked = next((each for each in self._requests if each.id == request), None)
        if asked is not None:
            self._say(f"trial {begun.number}: {asked.in_words}, as {asked.by} has asked")

    def _is_refused(self, request: Request) -> bool:
        said = self._answers.get(request.id)
        return said is not None and not said.accepted

    def _answer(self, request: Request, said: Answer) -> None:
        self._answers[request.id] = said
        answer(self._study, request, said)


class RequestedTrials:
    """Makes proposals of requests: a choice that the space holds, a plan that may be trained."""

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        planner: Planner,
        search: SearchSettings,
        seed: int,
    ) -> None:
        self._study, self._space, self._planner = study, space, planner
        self._search, self._seed = search, seed
        self._even = RandomSampler(seed=seed)

    def proposal(self, request: Request) -> Proposal:
        """What a request asks for, cold.

        Raises UsageError where the space does not hold it or its plan cannot be trained.
        """
        choice = from_record(dict(request.choice or {}))
        params = params_held(self._space, choice)
        point = Snapshot((), self._study.directions).draw(self._even, params)
        found = self._space.suggest(point)
        plan = self._planner.plan(found)
        if not self._search.takes(plan.trainable_params):
            raise UsageError(
                f"{found.method}: {plan.trainable_params} parameters, search.max_params is "
                f"{self._search.max_params}; ask for a smaller plan"
            )
        return Proposal(
            point.params,
            point.distributions,
            found,
            plan,
            self._space.arm_of(found, self._search.arms),
            self._seed,
            asked=Asked(request.id, request.number),
        )


def params_held(space: SearchSpace, choice: Choice) -> dict[str, Any]:
    """Optuna's parameters that stand for a choice in a space.

    Raises UsageError, with the key, where the space does not hold it: Optuna's distributions must
    fit, and what is not searched is as it is in all trials.
    """
    try:
        params = space.params_of(choice)
    except ChoiceError as error:
        reason, widen, _ = str(error).partition("; widen")
        if not widen:
            raise
        raise UsageError(
            f"{reason}, and a sweep keeps its space; ask for a value that it holds"
        ) from None
    _refuse_other_values(choice, space.suggest(FixedTrial(dict(params))))
    return params


def over_requests(study: optuna.Study) -> set[str]:
    """Ids of the requests whose trial has ended, and is not trained again."""
    return {
        trial.user_attrs[REQUEST]
        for trial in study.get_trials(deepcopy=False)
        if REQUEST in trial.user_attrs
        and trial.state.is_finished()
        and INTERRUPTED not in trial.user_attrs
    }


def refuse_the_same(proposal: Proposal, standing: Standing) -> None:
    """Raise UsageError where what is proposed, cold, is trained or was."""
    same = standing.trainings.get((training_of(proposal.choice, proposal.plan), proposal.seed))
    if same is None or STOPPED in same.user_attrs:
        return
    state = "trains it" if same.state == TrialState.RUNNING else f"is it ({ended_as(same)})"
    raise UsageError(
        f"{proposal.choice.method}: trial {same.number} {state}, the same plan at the same "
        "learning rate; ask for another"
    )


def _refuse_other_values(choice: Choice, found: Choice) -> None:
    """Raise UsageError where the space makes another choice of one: by a key it does not search."""
    asked, kept = flattened(choice.as_dict()), flattened(found.as_dict())
    for key, value in asked.items():
        if not _is_equal(value, kept.get(key)):
            raise UsageError(
                f"{choice.method}.{key}: {value!r} is not in the space of the sweep, whose trials "
                f"have {kept.get(key)!r} there; leave it out"
            )


def _is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return isclose(one, other, rel_tol=1e-9)
    return bool(one == other)
