"""What users ask to be trained, as trials of the study: judged, and handed out in their turn.

The space must hold it, its plan must be one that may be trained, and no trial may be the same.
"""

from __future__ import annotations

from dataclasses import replace
from math import isclose
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial, TrialState

from search.config.sweep import SearchSettings
from search.study.requests import Request
from search.study.sampling import Snapshot
from search.study.standing import Standing, training_of
from search.study.steering import Steering
from search.study.study import STOPPED, ended_as
from search.study.trial import Asked, OpenTrial, Proposal
from search.study.warm_clone import Source
from search.tracking.facts import flattened
from spaces.choice import Choice
from spaces.errors import ChoiceError, UsageError
from spaces.methods.registry import from_record
from spaces.planner import Planner
from spaces.search_space import SearchSpace


class RequestedTrials:
    """Makes proposals of the requests that a driver's `steering` has heard."""

    def __init__(
        self,
        steering: Steering,
        study: optuna.Study,
        space: SearchSpace,
        planner: Planner,
        search: SearchSettings,
        seed: int,
    ) -> None:
        self._steering, self._study = steering, study
        self._space, self._planner = space, planner
        self._search, self._seed = search, seed
        self._even = RandomSampler(seed=seed)
        self.waits = False
        """Whether what is to be trained waits for the weights that it starts from."""

    def look(self) -> bool:
        """Hear what users ask for, if it is time to; whether anything has no answer yet."""
        return self._steering.look()

    def attend(self, standing: Standing) -> None:
        """Judge what is new, and have weights fetched that may be gone when its turn comes."""
        for request in self._steering.to_train(standing.requested):
            if not self._steering.is_judged(request):
                self._proposal(request, standing)

    def next_of(self, standing: Standing) -> Proposal | None:
        """What is to be trained next; None where nothing is, or all of it waits."""
        self._steering.look()
        self.waits = False
        found = (
            self._proposal(request, standing)
            for request in self._steering.to_train(standing.requested)
        )
        return next((proposal for proposal in found if proposal is not None), None)

    def has_begun(self, begun: OpenTrial) -> None:
        """A trial was begun of what `next_of` has handed out."""
        assert begun.asked is not None
        self._steering.has_begun(begun, begun.asked.request)

    def _proposal(self, request: Request, standing: Standing) -> Proposal | None:
        """What a request asks for; None where it is refused, left to another driver, or waits."""
        source = Source.of(self._study, request)
        if source is not None and self._steering.is_left_to_another(request, source):
            return None
        try:
            proposal = self._cold(request)
            if not request.warm:
                _refuse_the_same(proposal, standing)
                self._steering.accept(request)
                return proposal
            return self._warm(request, source, proposal)
        except UsageError as error:
            self._steering.refuse(request, str(error))
            return None

    def _warm(self, request: Request, source: Source | None, proposal: Proposal) -> Proposal | None:
        """A clone with the file that it starts from; None while that is on its way."""
        if source is None or proposal.asked is None:
            raise UsageError(f"there is no trial {request.number} to start from")
        warm = self._steering.warm
        if not self._steering.is_judged(request):
            self._steering.accept(request, warm.agree(source, proposal.plan))
        file = warm.file(request, source, proposal.plan)
        if file is None:
            self.waits = True
            return None
        return replace(proposal, asked=replace(proposal.asked, warm=file))

    def _cold(self, request: Request) -> Proposal:
        """What a request asks for, from the base.

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


def _refuse_the_same(proposal: Proposal, standing: Standing) -> None:
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
