"""What a user asks to be trained, as a trial of the study: what the space holds, and no trial is."""

from __future__ import annotations

from math import isclose
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial, TrialState

from search.config.sweep import SearchSettings
from search.study.requests import Request
from search.study.sampling import Snapshot
from search.study.standing import Standing, training_of
from search.study.study import STOPPED, ended_as
from search.study.trial import Asked, Proposal
from search.tracking.facts import flattened
from spaces.choice import Choice
from spaces.errors import ChoiceError, UsageError
from spaces.methods.registry import from_record
from spaces.planner import Planner
from spaces.search_space import SearchSpace


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
