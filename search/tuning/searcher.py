"""Optuna as Ray Tune's searcher: asks a study for choices and tells it what became of each.

Tune's own `OptunaSearch` calls a trial COMPLETE that a scheduler has stopped, forgets intermediate
values where there are two objectives, and only logs a NaN. Here the state of every Optuna trial is
that of the Tune trial it stands for:

=========== ============================================================================
state       meaning
=========== ============================================================================
COMPLETE    trained for all its epochs, with finite values: those of its last epoch
            or answered from such a trial, whose number the attribute
            ``ranksweep_duplicate_of`` holds: another choice, but the same training
PRUNED      stopped early by the scheduler; its curve is kept
FAIL        failed, or ended at a NaN or an infinity, or was cut off by the user or the
            time budget (attribute ``ranksweep_interrupted``); attribute ``reason`` says why.
            Or another driver was faster (``ranksweep_rejected``)
=========== ============================================================================

What can be told of a choice without training it is told before Optuna has a trial of it: a point
that asks for more than `max_params` parameters, cannot be a plan, or was trained already is drawn
again. So the sampler draws from its model as cut to what may be trained, and no trial of the study
is spent on the rest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher

from search.study.ranking import next_repeat
from search.study.sampling import Draft, Snapshot
from search.study.shared import SharedStudy
from search.study.standing import (
    Standing,
    Standings,
    interrupted,
    is_handed_out,
    is_same_training,
    training_of,
)
from search.study.study import (
    ARM,
    CHOICE,
    CURVE,
    DUPLICATE_OF,
    INTERRUPTED,
    METHOD,
    PLAN_DIGEST,
    REASON,
    REJECTED,
    REPEAT,
    RUN_ID,
    SEED,
    TRAINABLE_PARAMS,
    TRAINING,
    WARM_START_FROM,
    choice_text,
)
from search.study.trial import Allocation, EndedTrial, OpenTrial, Proposal, other_space
from spaces.choice import Choice
from spaces.errors import ChoiceError, UsageError
from spaces.methods.registry import make_plan, parse_choice
from spaces.profile import Profile
from spaces.search_space import SearchSpace
from spaces.target import BaseSize, TargetModule

logger = logging.getLogger(__name__)

#: How many points of one method the sampler may draw in vain before a fallback is taken.
TRIES = 24
#: How many points are then drawn evenly before the method takes no further part.
EVEN_TRIES = 200
#: How many trials in a row may be answered from others before such a point is drawn again too.
ANSWERS = 4
#: The seed of a choice's k-th repetition is train.seed + REPEAT_SEEDS + k - 1: confirmations have
#: those next to train.seed.
REPEAT_SEEDS = 1000


class StudySearcher(Searcher):  # type: ignore[misc]
    """Hands out choices of a study to Ray Tune, one per trial, and tells the study how they ended.

    Tune calls `suggest` when it can start a trial, `on_trial_result` after each report that does
    not stop it, and `on_trial_complete` when it ends. A suggestion is ``{"choice": dict, "number":
    n, "seed": s, "repeat": k}`` with Optuna's number of the trial, the seed to train with, and 0 or
    which repetition of the choice it is.

    Args:
        study: the study, made by `open_study`.
        space: what may be chosen.
        targets: the base's target modules.
        profile: its profile; None where no method of the space needs one.
        metric: the reported metric that Tune's scheduler looks at.
        objectives: what the study optimizes: reported metrics or ``trainable_params``.
        mode: ``max`` or ``min``, the better direction of the metric.
        epochs: how many epochs a full trial has.
        trials: how many trials to hand out, those of an earlier run of the study included.
        max_params: no plan with more trainable parameters is handed out.
        allocation: ``equal``: each trial goes to the method with the fewest; ``free``: the sampler
            chooses the method.
        enqueue: choices to hand out first; those that the study has already trained are left out.
        origins: of these, text of a choice -> the MLflow run that it is from.
        size: the base's, which some plans depend on.
        arms: keys whose every value is given trials of its own, as if it were a method.
        seed: the one to train with.
        repeats: (top, seeds): the last top * seeds trials train the best choices so far again, each
            with so many other seeds.
        shared: this driver's part, where others have the same study.
        waits: whether to wait for what is being trained, where that decides on what is next.
        say: is told in a line what a user may want to know.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        *,
        targets: tuple[TargetModule, ...],
        profile: Profile | None,
        metric: str,
        objectives: Sequence[str],
        mode: str,
        epochs: int,
        trials: int,
        max_params: int | None = None,
        allocation: Allocation = "equal",
        enqueue: Iterable[Choice] = (),
        origins: Mapping[str, str] | None = None,
        size: BaseSize | None = None,
        arms: Sequence[str] = (),
        seed: int = 0,
        repeats: tuple[int, int] | None = None,
        shared: SharedStudy | None = None,
        waits: Callable[[], bool] = lambda: True,
        say: Callable[[str], None] = logger.info,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._study = study
        self._standings = Standings(study)
        self._space = space
        self._targets = targets
        self._profile = profile
        self._size = size
        self._arm_keys = tuple(arms)
        self._arms = {arm.name: arm for arm in space.arms(arms)}
        self._objectives = tuple(objectives)
        self._epochs = epochs
        self._trials = trials
        self._max_params = max_params
        self._allocation = allocation
        self._origins = dict(origins or {})
        self._seed = seed
        self._repeats = repeats
        self._shared = shared
        self._waits = waits
        self._say = say
        self._even = RandomSampler(seed=seed)
        self._beyond: list[FrozenTrial] = []
        self._queue = deque({choice_text(choice): choice for choice in enqueue}.values())
        self._open: dict[str, OpenTrial] = {}
        self._ended: dict[str, EndedTrial] = {}
        self._closed: dict[str, str] = {}
        self._fitting: set[str] = set()
        self._too_large: Draft | None = None
        self._excess = 0.0
        self._refusal = ""
        self._same_runs = False
        #: Text of the error of a failed Tune trial; Tune itself does not hand it to a searcher.
        self.read_error: Callable[[str], str | None] = lambda trial_id: None

    # -- what Tune calls ------------------------------------------------------------------------

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next choice, or `Searcher.FINISHED` when `trials` are out or nothing can be asked.

        None where what runs decides on what is next: all are out and other drivers train some of
        them still, and one that dies leaves its trials to those that live; the best is not known
        that is to be repeated; nothing is left to draw but what is being trained.
        """
        answered = 0
        while True:
            standing = self._standing()
            if standing.handed >= self._trials:
                others = self._shared is not None and self._shared.others_run()
                return self._later() if others else str(Searcher.FINISHED)
            if self._repeats_next(standing) and standing.unrepeated_run:
                return self._later()  # one that runs still may be the best
            proposal = self._propose(standing, may_answer=answered < ANSWERS)
            if proposal is None:
                return self._later() if standing.unrepeated_run else str(Searcher.FINISHED)
            if proposal.answer is not None:
                self._answer(proposal, proposal.answer)
                answered += 1
                continue
            trial = self._create(proposal)
            if self._is_ours(trial):
                self._open[trial_id] = OpenTrial(
                    trial, proposal.choice, proposal.plan, proposal.seed, proposal.repeat
                )
                if proposal.of is not None:
                    self._say(
                        f"trial {trial.number}: trains the choice of trial {proposal.of} again, "
                        f"with seed {proposal.seed}"
                    )
                return {
                    "choice": proposal.choice.as_dict(),
                    "number": trial.number,
                    "seed": proposal.seed,
                    "repeat": proposal.repeat,
                }

    def _later(self) -> str | None:
        """To be asked again, while it is worth waiting for what runs."""
        return None if self._waits() else str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Keep an epoch's values; Optuna takes them as intermediate values of one objective."""
        if trial_id in self._open:
            self._record(self._open[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study how the trial ended, by the epochs it has done."""
        found = self._open.get(trial_id)
        if found is None:
            return
        if error:
            reason = self.read_error(trial_id) or "the trial failed"
            self._end(trial_id, EndedTrial(found.number, found.choice, "failed", reason=reason))
            return
        if result:
            self._record(found, result)
        self._end(trial_id, self._verdict(found))

    def save(self, checkpoint_path: str) -> None:
        """Write which Optuna trial each open Tune trial stands for; the study has its storage."""
        numbers = {trial_id: found.number for trial_id, found in self._open.items()}
        Path(checkpoint_path).write_text(json.dumps(numbers), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Take up the open trials that `save` wrote."""
        numbers = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        frozen = {trial.number: trial for trial in self._study.get_trials(deepcopy=False)}
        for trial_id, number in numbers.items():
            if frozen[number].state == TrialState.RUNNING:
                choice = parse_choice(json.loads(frozen[number].user_attrs[CHOICE]))
                plan = make_plan(choice, self._targets, self._profile, self._size)
                trial = optuna.trial.Trial(self._study, frozen[number]._trial_id)
                attributes = frozen[number].user_attrs
                self._open[trial_id] = OpenTrial(
                    trial, choice, plan, attributes[SEED], attributes.get(REPEAT, 0)
                )

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its arguments for `Tuner.restore`. ranksweep resumes from the study instead;
        # its URL may hold a password, and a profile is large: neither belongs in Tune's files.
        return {}

    # -- what the driver calls ------------------------------------------------------------------

    @property
    def handed(self) -> int:
        """Trials handed out so far, those of earlier runs and of other drivers included."""
        return self._standings.now().handed

    @property
    def wanted(self) -> int:
        """Trials to hand out in all."""
        return self._trials

    @property
    def counts(self) -> dict[str, int]:
        """Trials handed out per arm: per method where no keys make arms."""
        return dict(self._standings.now().counts)

    @property
    def shortfall(self) -> str | None:
        """Why methods take no further part, which may end a search early; None if all do."""
        return "; ".join(self._closed.values()) or None

    @property
    def open_ids(self) -> tuple[str, ...]:
        """Tune's ids of the trials that have not ended."""
        return tuple(self._open)

    def open_trial(self, trial_id: str) -> OpenTrial | None:
        """The open trial of this Tune id."""
        return self._open.get(trial_id)

    def ended_trial(self, trial_id: str) -> EndedTrial | None:
        """How the trial of this Tune id ended; None while it is open."""
        return self._ended.get(trial_id)

    @property
    def ended(self) -> tuple[EndedTrial, ...]:
        """The trials of this run that have ended, by number."""
        return tuple(sorted(self._ended.values(), key=lambda trial: trial.number))

    def stages(self, trial_id: str) -> int:
        """How many stages the plan of an open trial has; 1 for a trial that is not open."""
        found = self._open.get(trial_id)
        return max(1, len(found.plan.stages)) if found else 1

    def arm_of(self, choice: Choice) -> str:
        """The name of the arm that a choice belongs to: its method where no keys make arms."""
        return self._space.arm_of(choice, self._arm_keys)

    def credits(self, number: int) -> dict[str, Any]:
        """What a record of an open trial should say beside its choice: seed, repetition, origin."""
        for found in self._open.values():
            if found.number == number:
                origin = self._origins.get(choice_text(found.choice))
                told = {SEED: found.seed, REPEAT: found.repeat or None, WARM_START_FROM: origin}
                return {key: value for key, value in told.items() if value is not None}
        return {}

    def set_run_id(self, number: int, run_id: str) -> None:
        """Note the tracking run of an open trial. May be called from another thread.

        Raises:
            KeyError: no trial of this number is open.
        """
        for found in list(self._open.values()):
            if found.number == number:
                found.trial.set_user_attr(RUN_ID, run_id)
                return
        raise KeyError(number)

    def cancel(self, trial_id: str, reason: str) -> EndedTrial | None:
        """Tell FAIL an open trial that was cut off from outside; a resumed sweep redoes it."""
        found = self._open.get(trial_id)
        if found is None:
            return None
        ended = EndedTrial(found.number, found.choice, "cancelled", reason=reason)
        self._end(trial_id, ended)
        return ended

    # -- asking ---------------------------------------------------------------------------------

    def _standing(self) -> Standing:
        if self._shared is not None and (left := self._shared.left_behind()):
            self._queue.extendleft(reversed(interrupted(self._study, left)))
        return self._standings.now()

    def _propose(self, standing: Standing, may_answer: bool) -> Proposal | None:
        """What to train next: a repetition, what is enqueued, or what the sampler draws.

        Where nothing new is left to draw, it is a repetition too.

        Raises:
            ConfigError: the study was made over another space.
        """
        try:
            return (
                (self._repetition(standing) if self._repeats_next(standing) else None)
                or self._enqueued(standing, may_answer)
                or self._drawn(standing, may_answer)
                or (None if standing.unrepeated_run else self._repetition(standing))
            )
        except ValueError as error:
            raise other_space(error) from error

    def _repeats_next(self, standing: Standing) -> bool:
        """Whether only the trials are left that repeat others."""
        if self._repeats is None:
            return False
        top, seeds = self._repeats
        return standing.handed >= self._trials - top * seeds

    def _repetition(self, standing: Standing) -> Proposal | None:
        if self._repeats is None:
            return None
        top, seeds = self._repeats
        found = next_repeat(standing, self.mode, top, seeds)
        if found is None:
            return None
        first, repeat = found
        choice = parse_choice(json.loads(first.user_attrs[CHOICE]))
        plan = make_plan(choice, self._targets, self._profile, self._size)
        seed = self._seed + REPEAT_SEEDS + repeat - 1
        return Proposal(
            first.params, first.distributions, choice, plan, seed, repeat, of=first.number
        )

    def _enqueued(self, standing: Standing, may_answer: bool) -> Proposal | None:
        while self._queue:
            choice = self._queue[0]
            if choice_text(choice) not in standing.choices:
                try:
                    point = Snapshot((), self._study.directions).draw(
                        self._even, self._space.params_of(choice)
                    )
                except ChoiceError as error:  # the space of an earlier run may have held it
                    self._refusal = str(error)
                else:
                    if found := self._judged(point, standing, may_answer):
                        self._queue.popleft()
                        return found
                logger.warning("an enqueued choice is left out: %s", self._refusal)
            self._queue.popleft()
        return None

    def _drawn(self, standing: Standing, may_answer: bool) -> Proposal | None:
        # As many as there are trials, for they are among those whose best tenth the sampler models.
        del self._beyond[: max(0, len(self._beyond) - len(standing.all_trials))]
        snapshot = Snapshot(standing.all_trials, self._study.directions, self._beyond)
        waiting: set[str] = set()
        while arms := [name for name in self._arms if name not in {*self._closed, *waiting}]:
            fewest = min(arms, key=lambda name: standing.counts[name])
            self._same_runs = False
            found = self._drawn_of(fewest, snapshot, standing, may_answer)
            if found is not None:
                return found
            if fewest not in self._closed:
                waiting.add(fewest)
        return None

    def _drawn_of(
        self, fewest: str, snapshot: Snapshot, standing: Standing, may_answer: bool
    ) -> Proposal | None:
        """A point of the sampler's that may be trained, else one drawn evenly; None when an arm was
        closed, or may have to be once a trial has ended that is the same training."""
        self._too_large = None
        for sampler, fixed in self._draws(self._arms[fewest].params):
            draft = snapshot.draw(sampler, fixed)
            found = self._judged(draft, standing, may_answer)
            if found is not None:
                return found
            if self._too_large is draft:
                snapshot.refuse(draft, TRAINABLE_PARAMS, self._excess)
            if self._cannot_fit():
                return None
        if not self._same_runs:
            self._close(fewest, f"what it still draws cannot be trained ({self._refusal})")
        return None

    def _draws(self, arm: dict[str, Any]) -> Iterator[tuple[BaseSampler, dict[str, Any]]]:
        """Where to draw from, and with which parameters fixed, one try after another."""
        if self._allocation == "free":
            yield from [(self._study.sampler, {})] * TRIES
        yield from [(self._study.sampler, arm)] * TRIES
        least = self._least(self._too_large) if self._too_large else None
        if least is not None and self._fits(least[1]):
            yield self._study.sampler, least[0]
        yield from [(self._even, arm)] * EVEN_TRIES

    def _judged(self, point: Draft, standing: Standing, may_answer: bool) -> Proposal | None:
        """What a point stands for; None, with the reason in `_refusal`, if it is not to be trained.

        Raises:
            ValueError: the study was made over another space.
        """
        try:
            choice = self._space.suggest(cast("optuna.trial.BaseTrial", point))
            known = standing.choices.get(choice_text(choice))
            if known is not None:
                self._same_runs |= known.state == TrialState.RUNNING
                self._refusal = f"{choice.method}: trained already, as trial {known.number}"
                return None
            plan = make_plan(choice, self._targets, self._profile, self._size)
        except UsageError as error:
            self._refusal = str(error)
            return None
        count = plan.trainable_params
        if self._max_params is not None and count > self._max_params:
            self._refusal = f"{choice.method}: {count} parameters, max_params is {self._max_params}"
            self._too_large, self._excess = point, float(count - self._max_params)
            return None
        same = standing.trainings.get((training_of(choice, plan), self._seed))
        if same is None or (may_answer and same.state == TrialState.COMPLETE):
            return Proposal(
                point.params, point.distributions, choice, plan, self._seed, answer=same
            )
        self._same_runs |= same.state == TrialState.RUNNING
        self._refusal = f"{choice.method}: trained already, as trial {same.number}"
        return None

    def _frozen(self, proposal: Proposal, state: TrialState, **more: Any) -> FrozenTrial:
        choice, plan = proposal.choice, proposal.plan
        noted = {
            CHOICE: choice_text(choice),
            METHOD: choice.method,
            ARM: self.arm_of(choice),
            TRAINABLE_PARAMS: plan.trainable_params,
            PLAN_DIGEST: plan.digest,
            TRAINING: training_of(choice, plan),
            SEED: proposal.seed,
            REPEAT: proposal.repeat or None,
            WARM_START_FROM: self._origins.get(choice_text(choice)),
            DUPLICATE_OF: proposal.answer.number if proposal.answer else None,
        }
        excess = None if self._max_params is None else plan.trainable_params - self._max_params
        return create_trial(
            state=state,
            params=dict(proposal.params),
            distributions=dict(proposal.distributions),
            user_attrs={key: value for key, value in noted.items() if value is not None},
            constraints=None if excess is None else {TRAINABLE_PARAMS: float(excess)},
            **more,
        )

    def _create(self, proposal: Proposal) -> optuna.trial.Trial:
        """A running trial of what is proposed: the storage has it whole or not at all.

        Raises:
            ConfigError: the study was made over another space.
        """
        frozen = self._frozen(proposal, TrialState.RUNNING)
        try:
            # `Study.add_trial` does the same and keeps the id to itself.
            trial_id = self._study._storage.create_new_trial(self._study._study_id, frozen)
        except ValueError as error:
            raise other_space(error) from error
        trial = optuna.trial.Trial(self._study, trial_id)
        if self._shared is not None:
            self._shared.took(trial)
        return trial

    def _answer(self, proposal: Proposal, answer: FrozenTrial) -> None:
        """A complete trial of what is proposed, with the values of the one that is the same."""
        told = {"values": answer.values, "intermediate_values": answer.intermediate_values}
        self._study.add_trial(self._frozen(proposal, TrialState.COMPLETE, **told))
        self._say(
            f"{self.arm_of(proposal.choice)}: a choice that is the same plan at the same learning "
            f"rate as trial {answer.number} ({answer.user_attrs[ARM]}) is answered from it"
        )

    def _is_ours(self, trial: optuna.trial.Trial) -> bool:
        """Whether a trial that was written down stays: see search/study/shared.py."""
        if self._shared is None:
            return True
        *ahead, own = self._study.get_trials(deepcopy=False)[: trial.number + 1]
        counted = [each for each in ahead if is_handed_out(each)]
        same = [each for each in counted if is_same_training(each, own)]
        if len(counted) < self._trials and not same:
            return True
        why = f"trial {same[0].number} is the same" if same else "search.trials are out"
        trial.set_user_attr(REJECTED, f"another driver was faster: {why}")
        self._tell(trial, state=TrialState.FAIL)
        return False

    def _fits(self, params: int) -> bool:
        return self._max_params is None or params <= self._max_params

    def _cannot_fit(self) -> bool:
        """Close the arm of the point just refused where its smallest plan is too large too."""
        if self._too_large is None:
            return False
        refused = self._space.suggest(cast("optuna.trial.BaseTrial", self._too_large))
        arm = self.arm_of(refused)
        if arm in self._fitting or arm in self._closed:
            return False
        least = self._least(self._too_large)
        if least is not None and self._fits(least[1]):
            self._fitting.add(arm)
            return False
        smallest = least[1] if least else self._count_params(self._too_large.params)
        self._close(
            arm, f"its smallest plan has {smallest} parameters, max_params is {self._max_params}"
        )
        return True

    def _close(self, arm: str, reason: str) -> None:
        self._closed[arm] = f"space.methods.{arm}: takes no further part, {reason}"
        logger.warning(self._closed[arm])

    def _least(self, start: Draft) -> tuple[dict[str, Any], int] | None:
        """The smallest plan near `start`, by coordinate descent over the ends of its ranges.

        Returns the point, its learning rate left to the sampler, and its trainable parameters.
        """
        best = dict(start.params)
        choice = self._space.suggest(cast("optuna.trial.BaseTrial", start))
        kept = self._arms[self.arm_of(choice)].params
        count = self._count_params(best)
        for _ in range(2):
            before = count
            for name, distribution in start.distributions.items():
                if name in kept or name.endswith("learning_rate"):
                    continue
                for value in _ends(distribution):
                    tried = self._count_params({**best, name: value})
                    if tried is not None and (count is None or tried < count):
                        best[name], count = value, tried
            if count == before:
                break
        if count is None:
            return None
        fixed = {name: v for name, v in best.items() if not name.endswith("learning_rate")}
        return {**fixed, **kept}, count

    def _count_params(self, params: dict[str, Any]) -> int | None:
        """Trainable parameters of the plan at a point; None where there is none."""
        try:
            choice = self._space.suggest(FixedTrial(params))
            return int(make_plan(choice, self._targets, self._profile, self._size).trainable_params)
        except (UsageError, ValueError):  # ValueError: another value asks for other parameters
            return None

    # -- telling --------------------------------------------------------------------------------

    def _value(self, found: OpenTrial, objective: str, values: Mapping[str, Any]) -> float:
        if objective == TRAINABLE_PARAMS:
            return float(found.plan.trainable_params)
        return float(values.get(objective, math.nan))

    def _record(self, found: OpenTrial, result: Mapping[str, Any]) -> None:
        epoch = int(result.get("epoch", 0))
        if epoch < 1 or epoch in found.curve:
            return
        names = {self.metric, "dev_loss", "train_loss", *self._objectives} - {TRAINABLE_PARAMS}
        found.curve[epoch] = {name: float(result[name]) for name in names if name in result}
        if len(self._objectives) == 1:
            with contextlib.suppress(UpdateFinishedTrialError):  # `_end` says what became of it
                found.trial.report(self._value(found, self._objectives[0], result), epoch)

    def _verdict(self, found: OpenTrial) -> EndedTrial:
        number, choice = found.number, found.choice
        if not found.curve:
            reason = "stopped before its first epoch ended"
            return EndedTrial(number, choice, "failed", reason=reason)
        last = max(found.curve)
        if last < self._epochs:
            reason = f"stopped after epoch {last} of {self._epochs}"
            return EndedTrial(number, choice, "pruned", reason=reason)
        values = tuple(self._value(found, name, found.curve[last]) for name in self._objectives)
        for name, value in zip(self._objectives, values, strict=True):
            if not math.isfinite(value):
                reason = f"{name} is {value} after epoch {last}"
                return EndedTrial(number, choice, "failed", reason=reason)
        return EndedTrial(number, choice, "complete", values=values)

    def _end(self, trial_id: str, ended: EndedTrial) -> None:
        found = self._open.pop(trial_id)
        try:
            if ended.reason is not None:
                found.trial.set_user_attr(REASON, ended.reason[:2000])
            if ended.state == "cancelled":
                found.trial.set_user_attr(INTERRUPTED, True)
            if len(self._objectives) > 1:
                # Optuna takes no intermediate values where there are several objectives.
                curve = {str(k): v for k, v in sorted(found.curve.items())}
                found.trial.set_user_attr(CURVE, curve)
            if ended.state == "complete":
                self._tell(found.trial, list(ended.values or ()))
            elif ended.state == "pruned":
                self._tell(found.trial, state=TrialState.PRUNED)
            else:
                self._tell(found.trial, state=TrialState.FAIL)
        except UpdateFinishedTrialError:
            reason = "another driver took it for left behind and has it trained again"
            logger.warning("trial %d: %s", found.number, reason)
            ended = replace(ended, state="cancelled", values=None, reason=reason)
        self._ended[trial_id] = ended

    def _tell(
        self,
        trial: optuna.trial.Trial,
        values: list[float] | None = None,
        state: TrialState | None = None,
    ) -> None:
        if self._shared is not None:
            self._shared.ended(trial)
        if self._study.get_trials(deepcopy=False)[trial.number].state.is_finished():
            raise UpdateFinishedTrialError(f"trial {trial.number} has ended")
        self._study.tell(trial, values, state)


def _ends(distribution: BaseDistribution) -> Sequence[Any]:
    """The values of a range that a coordinate descent tries."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    return distribution.low, distribution.high
