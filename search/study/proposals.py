"""What is trained next: what a user asks for, a repetition of what is best, what is enqueued, or
what the sampler draws.

What can be told of a choice without training it is told before Optuna has a trial of it: a point
that asks for more than `max_params` parameters, cannot be a plan, or was trained already is drawn
again. So the sampler draws from its model as cut to what may be trained, and no trial of the study
is spent on the rest. A grid draws nothing: all its points are enqueued.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from search.config.sweep import SearchSettings
from search.study.enough import Enough
from search.study.ledger import Ledger
from search.study.ranking import next_repeat
from search.study.requested_trials import RequestedTrials
from search.study.sampling import Point, Snapshot
from search.study.shared import SharedStudy
from search.study.smallest_plan import smallest_plan
from search.study.standing import Standing, Standings, interrupted, training_of
from search.study.steering import LOOK_S, Steering
from search.study.study import (
    ARM,
    CHOICE,
    TRAINABLE_PARAMS,
    WARM_FROM,
    choice_of,
    choice_text,
    is_older,
    over_the_same_space,
)
from search.study.trial import OpenTrial, Proposal
from search.surrogate.observation import RelatedSweep
from spaces.choice import Choice
from spaces.errors import ChoiceError, UsageError
from spaces.planner import Planner
from spaces.search_space import SearchSpace
from trainables.training.settings import TrainSettings

if TYPE_CHECKING:
    from search.study.plan_sampler import PlanSampler

logger = logging.getLogger(__name__)

#: How many points of one method the sampler may draw in vain before a fallback is taken.
TRIES = 24
#: So many trials of a search that has a history are the model's; the defaults take every second one
#: after them, until all have had theirs.
LEARNED_FIRST = 5
#: How many points are then drawn evenly before the method takes no further part.
EVEN_TRIES = 200
#: How many trials in a row may be answered from others before such a point is drawn again too.
ANSWERS = 4
#: Of an equal part of the trials, how much an arm has at least where the model may choose the arm.
LEAST = 0.25
LEAST_OF_LORA = 0.5
#: The seed of a choice's k-th repetition is train.seed + REPEAT_SEEDS + k - 1: confirmations have
#: those next to train.seed.
REPEAT_SEEDS = 1000


@dataclass(frozen=True)
class Refusal:
    """Why a point is not trained."""

    reason: str
    excess: int = 0
    """Parameters beyond `max_params`."""
    runs: bool = False
    """Whether it is trained just now: it may yet fail."""


class Proposals:
    """Hands out the trials of a study, one after another.

    Args:
        study: the study, made by `open_study`.
        space: what may be chosen.
        planner: makes the plans.
        search, train: what the sweep says of its trials.
        enqueue: choices to hand out first; those that the study has already trained are left out.
        origins: of these, text of a choice -> the MLflow run that it is from.
        shared: this driver's part, where others have the same study.
        steering: what users ask for while the search goes on, beside `search.trials`.
        history: what earlier sweeps tell.
        say: is told in a line what a user may want to know.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        planner: Planner,
        search: SearchSettings,
        train: TrainSettings,
        *,
        enqueue: Iterable[Choice] = (),
        origins: Mapping[str, str] | None = None,
        shared: SharedStudy | None = None,
        steering: Steering | None = None,
        history: Sequence[RelatedSweep] = (),
        say: Callable[[str], None] = logger.info,
    ) -> None:
        self.planner, self.search, self.train = planner, search, train
        self.ledger = Ledger(study, search, train, origins or {}, shared, planner.profile)
        self._study, self._space, self._shared, self._say = study, space, shared, say
        self.steering = steering
        self._requested = (
            None
            if steering is None
            else RequestedTrials(steering, study, space, planner, search, train.seed)
        )
        self._standings = Standings(study)
        self._enough = Enough(study, search, space, planner, history)
        self._older = is_older(study)
        self._arms = {arm.name: arm for arm in space.arms(search.arms)}
        self._even = RandomSampler(seed=train.seed)
        self._modelled = self._plan_sampler(history) if search.sampler == "plan" else None
        self._grid = search.sampler == "grid"
        self._walked = False
        self._rests_until = -float("inf")
        points = self._points() if self._grid else ()
        self._queue = deque({choice_text(each): each for each in [*enqueue, *points]}.values())
        self._beyond: list[FrozenTrial] = []
        self._fitting: set[str] = set()
        self._closed: dict[str, str] = {}

    @property
    def standing(self) -> Standing:
        """Where the study stands now: how many trials are handed out, and to which arms."""
        return self._standings.now()

    @property
    def shortfall(self) -> str | None:
        """Why methods take no further part, which may end a search early; None if all do."""
        return "; ".join(self._closed.values()) or None

    @property
    def enough(self) -> str | None:
        """Why `search.stop_when` has ended the search; None while it has not."""
        return self._enough.reason

    @property
    def wanted(self) -> int:
        """Trials to hand out in all; as many as were, once a grid has no point left."""
        return self.standing.handed if self._walked else self.search.trials

    def arm_of(self, choice: Choice) -> str:
        """The name of the arm that a choice belongs to: its method where no keys make arms."""
        return self._space.arm_of(choice, self.search.arms)

    def begin_next(self) -> OpenTrial | Literal["later", "never"]:
        """The next trial, begun; never, when `trials` are out or nothing can be asked.

        What a user asks for comes first, and may yet come while trials of this driver run. Later,
        where what runs decides on what is next: all are out and other drivers train some of
        them still, and one that dies leaves its trials to those that live; the best is not known
        that is to be repeated; nothing is left to draw but what is being trained.

        Raises:
            ConfigError: the study was made over another space.
        """
        answered = 0
        if time.monotonic() < self._rests_until and self.ledger.has_open:
            return "later"  # Tune asks at every step of its loop
        while True:
            standing = self._taken_over()
            if (asked := self._begun_as_asked(standing)) is not None:
                return asked
            if standing.handed >= self.search.trials or self._has_enough(standing):
                others = self._shared is not None and self._shared.others_run()
                return "later" if others or self._may_be_asked() else "never"
            if self._repeats_next(standing) and standing.unrepeated_run:
                return "later"  # one that runs still may be the best
            with over_the_same_space():
                proposal = self.propose(standing, self._grid or answered < ANSWERS)
            if proposal is None:
                self._walked = self._grid and not standing.unrepeated_run
                return "later" if standing.unrepeated_run or self._may_be_asked() else "never"
            if proposal.answer is not None:
                self._answer(proposal, proposal.answer)
                answered += 1
            elif (begun := self.ledger.begin(proposal)) is not None:
                if proposal.of is not None:
                    self._say(
                        f"trial {begun.number}: trains the choice of trial {proposal.of} again, "
                        f"with seed {begun.seed}"
                    )
                return begun

    def propose(self, standing: Standing, may_answer: bool) -> Proposal | None:
        """What to train next; where nothing new is left to draw, it is a repetition too.

        Raises:
            ValueError: the study was made over another space.
        """
        learned = self._modelled is not None and self._modelled.has_history
        # Whoever learned before knows better than the papers' defaults, which are to come as well.
        in_turn = learned and (standing.handed < LEARNED_FIRST or standing.handed % 2 == 0)
        return (
            (self._repetition(standing) if self._repeats_next(standing) else None)
            or (self._expected_most(standing, may_answer) if in_turn else None)
            or self._enqueued(standing, may_answer)
            or self._drawn(standing, may_answer)
            or (None if standing.unrepeated_run else self._repetition(standing))
        )

    def _taken_over(self) -> Standing:
        """Where the study stands, once what dead drivers have left is enqueued again."""
        if self._shared is not None and (left := self._shared.left_behind()):
            self._queue.extendleft(reversed(interrupted(self._study, left)))
        return self.standing

    def _answer(self, proposal: Proposal, answer: FrozenTrial) -> None:
        self.ledger.answer(proposal, answer)
        self._say(
            f"{proposal.arm}: a choice that is the same plan at the same learning rate as trial "
            f"{answer.number} ({answer.user_attrs[ARM]}) is answered from it"
        )

    # -- what users ask for ---------------------------------------------------------------------

    def attend(self) -> None:
        """Judge what users have asked for since, so that they hear of it before its turn comes."""
        if self._requested is not None and self._requested.look():
            self._requested.attend(self.standing)

    def _begun_as_asked(self, standing: Standing) -> OpenTrial | None:
        """A trial that a user has asked for, begun; None where there is none to begin now."""
        while self._requested is not None:
            proposal = self._requested.next_of(standing)
            if proposal is None:
                return None
            if (begun := self.ledger.begin(proposal)) is not None:
                self._requested.has_begun(begun)
                return begun
            standing = self.standing  # another driver was faster
        return None

    def _may_be_asked(self) -> bool:
        """Whether a search that has nothing left of its own may yet be given something to do."""
        if self._requested is None:
            return False
        self._rests_until = time.monotonic() + LOOK_S
        return self.ledger.has_open or self._requested.waits

    def _has_enough(self, standing: Standing) -> bool:
        """Whether `search.stop_when` ends the search, and what is best has its repetitions."""
        if self._enough.judge(standing, self._closed) is None:
            return False
        may_be_best = self.search.repeats is not None and standing.unrepeated_run
        return not may_be_best and self._repetition(standing) is None

    # -- repetitions ----------------------------------------------------------------------------

    def _repeats_next(self, standing: Standing) -> bool:
        """Whether only the trials are left that repeat others, or more would not be worth it."""
        repeats, trials = self.search.repeats, self.search.trials
        if repeats is None:
            return False
        return self.enough is not None or standing.handed >= trials - repeats.top * repeats.seeds

    def _repetition(self, standing: Standing) -> Proposal | None:
        repeats = self.search.repeats
        if repeats is None:
            return None
        found = next_repeat(standing, self.search.objective, repeats.top, repeats.seeds)
        if found is None:
            return None
        first, repeat = found
        choice = choice_of(first)
        return Proposal(
            first.params,
            first.distributions,
            choice,
            self.planner.plan(choice),
            self.arm_of(choice),
            self.train.seed + REPEAT_SEEDS + repeat - 1,
            repeat,
            of=first.number,
        )

    # -- what is enqueued -----------------------------------------------------------------------

    def _points(self) -> list[Choice]:
        """The points of the grid that no trial has been spent on."""
        spent = {
            trial.user_attrs[CHOICE]
            for trial in self.standing.trials
            if WARM_FROM not in trial.user_attrs
        }
        grid = self._space.grid(self.search.arms)
        return [choice for choice in grid if choice_text(choice) not in spent]

    def _enqueued(self, standing: Standing, may_answer: bool) -> Proposal | None:
        for _ in range(len(self._queue)):
            choice = self._queue.popleft()
            if choice_text(choice, self._older) in standing.choices:
                continue
            try:
                params = self._space.params_of(choice)
            except ChoiceError as error:  # the space of an earlier run may have held it
                logger.warning("an enqueued choice is left out: %s", error)
                continue
            point = Snapshot((), self._study.directions).draw(self._even, params)
            found = self._judged(point, standing, may_answer)
            if isinstance(found, Proposal):
                return found
            if self._grid and found.runs:
                self._queue.append(choice)  # answered from it, or trained if it fails
            elif self._grid:
                self._say(f"a point of the grid is left out: {found.reason}")
            else:
                logger.warning("an enqueued choice is left out: %s", found.reason)
        return None

    # -- what is drawn --------------------------------------------------------------------------

    def _drawn(self, standing: Standing, may_answer: bool) -> Proposal | None:
        if self._grid:
            return None
        if (found := self._expected_most(standing, may_answer)) is not None:
            return found
        # As many as there are trials, for they are among those whose best tenth the sampler models.
        del self._beyond[: max(0, len(self._beyond) - len(standing.all_trials))]
        snapshot = Snapshot(standing.comparable, self._study.directions, self._beyond)
        waiting: set[str] = set()
        while arms := [name for name in self._arms if name not in {*self._closed, *waiting}]:
            fewest = min(arms, key=lambda name: standing.counts[name])
            before = len(self._closed)
            found = self._drawn_of(fewest, snapshot, standing, may_answer)
            if found is not None:
                return found
            if len(self._closed) == before:
                waiting.add(fewest)
        return None

    def _plan_sampler(self, history: Sequence[RelatedSweep]) -> PlanSampler:
        from search.study.plan_sampler import PlanSampler  # loads torch

        return PlanSampler(
            self._study,
            self._space,
            self._arms,
            self.planner,
            self.search,
            self.train.epochs,
            history,
        )

    def _expected_most(self, standing: Standing, may_answer: bool) -> Proposal | None:
        """What the sampler `plan` expects the most of, of what may be trained.

        None with another sampler, or where it knows too little yet, or what it proposes cannot be
        trained.
        """
        arms = [name for name in self._arms if name not in self._closed]
        if self._modelled is None or not arms:
            return None
        asked = self._arms_to_ask(arms, standing)
        for params in self._modelled.ranked(standing, asked, TRIES):
            point = Snapshot((), self._study.directions).draw(self._even, params)
            found = self._judged(point, standing, may_answer)
            if isinstance(found, Proposal):
                return found
        return None

    def _arms_to_ask(self, arms: Sequence[str], standing: Standing) -> Sequence[str]:
        """Those of some arms that the next trial may be of: with `free` all, but an arm that has
        fallen below its least share goes first, so that tuned LoRA is there to compare with."""
        if self.search.allocation == "equal":
            return [min(arms, key=lambda name: standing.counts[name])]
        least = {
            name: LEAST_OF_LORA if self._arms[name].method == "lora" else LEAST for name in arms
        }
        even = standing.handed / len(self._arms)
        owed = {name: least[name] * even - standing.counts[name] for name in arms}
        most = max(arms, key=lambda name: owed[name])
        return [most] if owed[most] > 0 else arms

    def _drawn_of(
        self, arm: str, snapshot: Snapshot, standing: Standing, may_answer: bool
    ) -> Proposal | None:
        """A point of the sampler's that may be trained, else one drawn evenly; None when an arm was
        closed, or may have to be once a trial has ended that is the same training."""
        too_large: list[Point] = []
        same_runs, reason = False, ""
        for sampler, fixed in self._draws(self._arms[arm].params, too_large):
            point = snapshot.draw(sampler, fixed)
            found = self._judged(point, standing, may_answer)
            if isinstance(found, Proposal):
                return found
            same_runs, reason = same_runs or found.runs, found.reason
            if found.excess:
                too_large.append(point)
                snapshot.refuse(point, TRAINABLE_PARAMS, float(found.excess))
                if self._cannot_fit(point):
                    return None
        if not same_runs:
            self._close(arm, f"what it still draws cannot be trained ({reason})")
        return None

    def _draws(
        self, arm: Mapping[str, Any], too_large: list[Point]
    ) -> Iterator[tuple[BaseSampler, Mapping[str, Any]]]:
        """Where to draw from, and with which parameters fixed, one try after another.

        `too_large` holds the points that were drawn and asked for too many parameters.
        """
        if self.search.allocation == "free":
            yield from [(self._study.sampler, {})] * TRIES
        yield from [(self._study.sampler, arm)] * TRIES
        if too_large:
            least, params = self._smallest_plan(too_large[-1])
            if self.search.takes(params):
                yield self._study.sampler, least
        yield from [(self._even, arm)] * EVEN_TRIES

    def _judged(self, point: Point, standing: Standing, may_answer: bool) -> Proposal | Refusal:
        """What a point stands for, if it is to be trained.

        Raises:
            ValueError: the study was made over another space.
        """
        try:
            choice = self._space.suggest(point)
            if (known := standing.choices.get(choice_text(choice, self._older))) is not None:
                return _trained_already(choice, known)
            plan = self.planner.plan(choice)
        except UsageError as error:
            return Refusal(str(error))
        count, limit = plan.trainable_params, self.search.max_params
        if limit is not None and count > limit:
            reason = f"{choice.method}: {count} parameters, max_params is {limit}"
            return Refusal(reason, excess=count - limit)
        seed = self.train.seed
        same = standing.trainings.get((training_of(choice, plan), seed))
        if same is not None and not (may_answer and same.state == TrialState.COMPLETE):
            return _trained_already(choice, same)
        arm = self.arm_of(choice)
        return Proposal(point.params, point.distributions, choice, plan, arm, seed, answer=same)

    # -- who takes part -------------------------------------------------------------------------

    def _cannot_fit(self, too_large: Point) -> bool:
        """Close the arm of a point just refused where its smallest plan is too large too."""
        arm = self.arm_of(self._space.suggest(too_large))
        if arm in self._fitting or arm in self._closed:
            return False
        _, params = self._smallest_plan(too_large)
        if self.search.takes(params):
            self._fitting.add(arm)
            return False
        limit = self.search.max_params
        self._close(arm, f"its smallest plan has {params} parameters, max_params is {limit}")
        return True

    def _smallest_plan(self, start: Point) -> tuple[dict[str, Any], float]:
        """The smallest plan of a point's arm, and its parameters."""
        arm = self._arms[self.arm_of(self._space.suggest(start))]
        return smallest_plan(start, arm.params, self._space, self.planner)

    def _close(self, arm: str, reason: str) -> None:
        self._closed[arm] = f"space.methods.{arm}: takes no further part, {reason}"
        logger.warning(self._closed[arm])


def _trained_already(choice: Choice, known: FrozenTrial) -> Refusal:
    reason = f"{choice.method}: trained already, as trial {known.number}"
    return Refusal(reason, runs=known.state == TrialState.RUNNING)
