"""Optuna as Ray Tune's searcher: asks a study for choices and tells it what became of each.

Tune's own `OptunaSearch` calls a trial COMPLETE that a scheduler has stopped, forgets intermediate
values where there are two objectives, and only logs a NaN. Here the state of every Optuna trial is
that of the Tune trial it stands for:

=========== ============================================================================
state       meaning
=========== ============================================================================
COMPLETE    trained for all its epochs, with finite values: those of its last epoch
PRUNED      stopped early by the scheduler (its curve is kept), or never trained because
            it asks for more than `max_params` parameters (attribute ``ranksweep_rejected``)
FAIL        failed, or ended at a NaN or an infinity, or was cut off by the user or the
            time budget (attribute ``ranksweep_interrupted``); attribute ``reason`` says why
=========== ============================================================================
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from ray.tune.search import Searcher

from search.study import (
    ARM,
    CHOICE,
    CURVE,
    INTERRUPTED,
    METHOD,
    PLAN_DIGEST,
    REASON,
    REJECTED,
    RUN_ID,
    TRAINABLE_PARAMS,
    choice_text,
    drop_waiting,
    handed_out,
)
from spaces.choice import Choice
from spaces.errors import ChoiceError, ConfigError, UsageError
from spaces.methods import make_plan, parse_choice
from spaces.plan import Plan
from spaces.profile import Profile
from spaces.search_space import SearchSpace
from spaces.target import BaseSize, TargetModule

logger = logging.getLogger(__name__)

#: How many points of one method may be refused in a row before a fallback is taken.
TRIES = 24

EndState = Literal["complete", "pruned", "failed", "cancelled"]
Allocation = Literal["equal", "free"]


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
    """A trial that Tune holds; `curve` maps an epoch (from 1) to what it reported."""

    trial: optuna.trial.Trial
    choice: Choice
    plan: Plan
    curve: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Optuna's number of the trial."""
        return int(self.trial.number)


class StudySearcher(Searcher):  # type: ignore[misc]
    """Hands out choices of a study to Ray Tune, one per trial, and tells the study how they ended.

    Tune calls `suggest` when it can start a trial, `on_trial_result` after each report that does
    not stop it, and `on_trial_complete` when it ends. A suggestion is
    ``{"choice": dict, "number": n}`` with Optuna's number of the trial.

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
        max_params: a plan with more trainable parameters is rejected before it is trained.
        allocation: ``equal``: each trial goes to the method with the fewest; ``free``: the sampler
            chooses the method.
        enqueue: choices to hand out first; those that the study has already trained are left out.
        size: the base's, which some plans depend on.
        arms: keys whose every value is given trials of its own, as if it were a method.
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
        size: BaseSize | None = None,
        arms: Sequence[str] = (),
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._study = study
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
        self._open: dict[str, OpenTrial] = {}
        self._ended: dict[str, EndedTrial] = {}
        self._closed: dict[str, str] = {}
        self._fitting: set[str] = set()
        self._refused: FrozenTrial | None = None
        self._refusal = ""
        #: Text of the error of a failed Tune trial; Tune itself does not hand it to a searcher.
        self.read_error: Callable[[str], str | None] = lambda trial_id: None

        drop_waiting(study)
        before = handed_out(study)
        self._counts = Counter(trial.user_attrs[ARM] for trial in before)
        trained = {trial.user_attrs[CHOICE] for trial in before}
        first = {choice_text(choice): choice for choice in enqueue}
        self._queue = deque(choice for text, choice in first.items() if text not in trained)

    # -- what Tune calls ------------------------------------------------------------------------

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next choice, or `Searcher.FINISHED` when `trials` are out or nothing can be asked."""
        if self.handed >= self._trials:
            return str(Searcher.FINISHED)
        found = self._next()
        if found is None:
            return str(Searcher.FINISHED)
        self._open[trial_id] = found
        self._counts[self.arm_of(found.choice)] += 1
        return {"choice": found.choice.as_dict(), "number": found.number}

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
                self._open[trial_id] = OpenTrial(trial, choice, plan)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its arguments for `Tuner.restore`. ranksweep resumes from the study instead;
        # its URL may hold a password, and a profile is large: neither belongs in Tune's files.
        return {}

    # -- what the driver calls ------------------------------------------------------------------

    @property
    def handed(self) -> int:
        """Trials handed out so far, those of earlier runs included."""
        return sum(self._counts.values())

    @property
    def wanted(self) -> int:
        """Trials to hand out in all."""
        return self._trials

    @property
    def counts(self) -> dict[str, int]:
        """Trials handed out per arm: per method where no keys make arms."""
        return dict(self._counts)

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

    def set_run_id(self, number: int, run_id: str) -> None:
        """Note the tracking run of an open trial.

        Raises:
            KeyError: no trial of this number is open.
        """
        for found in self._open.values():
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

    def _next(self) -> OpenTrial | None:
        while self._queue:
            choice = self._queue.popleft()
            try:
                found = self._ask(self._space.params_of(choice))
            except ChoiceError as error:  # the space of an earlier run may have held it
                found, self._refusal = None, str(error)
            if found is not None:
                return found
            logger.warning("an enqueued choice is left out: %s", self._refusal)
        while arms := [name for name in self._arms if name not in self._closed]:
            fewest = min(arms, key=lambda name: self._counts[name])
            found = self._ask_until_one_fits(fewest)
            if found is not None:
                return found
        logger.warning(
            "the search ends after %d of %d trials: %s", self.handed, self._trials, self.shortfall
        )
        return None

    def _ask_until_one_fits(self, fewest: str) -> OpenTrial | None:
        """Ask up to `TRIES` times, then for the smallest plan; None when an arm was closed."""
        fixed: list[dict[str, Any]] = [self._arms[fewest].params] * TRIES
        if self._allocation == "free":
            fixed = [{}] * TRIES + fixed
        for params in fixed:
            found = self._ask(params)
            if found is not None:
                return found
            if self._cannot_fit():
                return None
        least = self._least(self._refused) if self._refused else None
        if least is not None and self._fits(least[1]):
            return self._ask(least[0])
        self._close(fewest, f"no choice of {TRIES} could be trained ({self._refusal})")
        return None

    def _ask(self, params: dict[str, Any]) -> OpenTrial | None:
        """Ask the study for one point with these parameters fixed; None when it cannot be trained.

        Raises:
            ConfigError: the study was made over another space.
        """
        self._refused = None
        if params:
            self._study.enqueue_trial(params)
        trial = self._study.ask()
        try:
            choice = self._space.suggest(trial)
            trial.set_user_attr(CHOICE, choice_text(choice))
            trial.set_user_attr(METHOD, choice.method)
            trial.set_user_attr(ARM, self.arm_of(choice))
            plan = make_plan(choice, self._targets, self._profile, self._size)
        except UsageError as error:
            self._reject(trial, TrialState.FAIL, str(error))
            return None
        except ValueError as error:
            self._reject(trial, TrialState.FAIL, str(error))
            raise ConfigError(
                f"space: does not fit the study it is searched with ({error}); "
                "keep the space of the first launch or give the sweep another name"
            ) from error
        trial.set_user_attr(TRAINABLE_PARAMS, plan.trainable_params)
        trial.set_user_attr(PLAN_DIGEST, plan.digest)
        if self._max_params is not None:
            trial.set_constraint(TRAINABLE_PARAMS, plan.trainable_params - self._max_params)
        if not self._fits(plan.trainable_params):
            reason = f"{plan.trainable_params} parameters, max_params is {self._max_params}"
            self._reject(trial, TrialState.PRUNED, f"{choice.method}: {reason}")
            self._refused = self._frozen(trial)
            return None
        return OpenTrial(trial, choice, plan)

    def _reject(self, trial: optuna.trial.Trial, state: TrialState, reason: str) -> None:
        self._refusal = reason
        trial.set_user_attr(REJECTED, reason)
        self._study.tell(trial, state=state)

    def _frozen(self, trial: optuna.trial.Trial) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[trial.number]

    def _fits(self, params: int) -> bool:
        return self._max_params is None or params <= self._max_params

    def _cannot_fit(self) -> bool:
        """Close the arm of the point just refused where its smallest plan is too large too."""
        if self._refused is None:
            return False
        arm = self._refused.user_attrs[ARM]
        if arm in self._fitting or arm in self._closed:
            return False
        least = self._least(self._refused)
        if least is not None and self._fits(least[1]):
            self._fitting.add(arm)
            return False
        smallest = least[1] if least else self._refused.user_attrs[TRAINABLE_PARAMS]
        self._close(
            arm, f"its smallest plan has {smallest} parameters, max_params is {self._max_params}"
        )
        return True

    def _close(self, arm: str, reason: str) -> None:
        self._closed[arm] = f"space.methods.{arm}: takes no further part, {reason}"
        logger.warning(self._closed[arm])

    def _least(self, start: FrozenTrial) -> tuple[dict[str, Any], int] | None:
        """The smallest plan near `start`, by coordinate descent over the ends of its ranges.

        Returns the point, its learning rate left to the sampler, and its trainable parameters.
        """
        best = dict(start.params)
        kept = self._arms[start.user_attrs[ARM]].params
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
        found = self._open[trial_id]
        if ended.reason is not None:
            found.trial.set_user_attr(REASON, ended.reason[:2000])
        if ended.state == "cancelled":
            found.trial.set_user_attr(INTERRUPTED, True)
        if len(self._objectives) > 1:
            # Optuna takes no intermediate values where there are several objectives.
            found.trial.set_user_attr(CURVE, {str(k): v for k, v in sorted(found.curve.items())})
        if ended.state == "complete":
            self._study.tell(found.trial, list(ended.values or ()))
        elif ended.state == "pruned":
            self._study.tell(found.trial, state=TrialState.PRUNED)
        else:
            self._study.tell(found.trial, state=TrialState.FAIL)
        del self._open[trial_id]
        self._ended[trial_id] = ended


def _ends(distribution: BaseDistribution) -> Sequence[Any]:
    """The values of a range that a coordinate descent tries."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    return distribution.low, distribution.high
