"""Where a study stands: what counts, what was cut off, what is left to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.study.private_optuna import opened
from search.study.study import (
    ARM,
    CHOICE,
    DUPLICATE_OF,
    INTERRUPTED,
    REASON,
    REJECTED,
    REPEAT,
    REQUEST,
    SEED,
    STOPPED,
    TRAINING,
    WARM_FROM,
    choice_of,
)
from spaces.choice import Choice
from spaces.plan import Plan


def is_handed_out(trial: FrozenTrial) -> bool:
    """Whether a trial counts: trained or being trained, not rejected, interrupted or answered."""
    attributes = trial.user_attrs
    return CHOICE in attributes and not attributes.keys() & {REJECTED, INTERRUPTED, DUPLICATE_OF}


def is_of_the_search(trial: FrozenTrial) -> bool:
    """Whether a trial that counts is one of `search.trials`, and not asked for beside them."""
    return REQUEST not in trial.user_attrs


@dataclass
class Standing:
    """What of a study decides on its next trial, read at one moment."""

    all_trials: Sequence[FrozenTrial] = ()
    trials: list[FrozenTrial] = field(default_factory=list)
    """Those that count."""
    counts: Counter[str] = field(default_factory=Counter)
    """Arm -> how many of `search.trials`."""
    choices: dict[str, FrozenTrial] = field(default_factory=dict)
    """Text of a choice -> a trial of it, one that failed or started warm left out."""
    trainings: dict[tuple[str, int], FrozenTrial] = field(default_factory=dict)
    """`TRAINING` and seed -> its trial, one that failed or started warm left out."""
    requested: dict[str, FrozenTrial] = field(default_factory=dict)
    """Id of a user's request -> the trial that it is answered by."""
    has_warm: bool = False
    """Whether a trial has started from the weights of another."""

    @property
    def unrepeated_run(self) -> bool:
        """Whether a trial runs that is no repetition, and that may come to be repeated."""
        return any(
            trial.state == TrialState.RUNNING and not trial.user_attrs.keys() & {REPEAT, WARM_FROM}
            for trial in self.trials
        )

    @property
    def handed(self) -> int:
        """How many of `search.trials` are out."""
        return sum(self.counts.values())

    @property
    def comparable(self) -> Sequence[FrozenTrial]:
        """All trials whose values tell of their choices: those that started from the base."""
        if not self.has_warm:
            return self.all_trials
        return [trial for trial in self.all_trials if WARM_FROM not in trial.user_attrs]

    def add(self, trial: FrozenTrial) -> None:
        """Take in the next trial of the study."""
        attributes = trial.user_attrs
        if DUPLICATE_OF in attributes:
            self.choices.setdefault(attributes[CHOICE], trial)
        if not is_handed_out(trial):
            return
        self.trials.append(trial)
        if is_of_the_search(trial):
            self.counts[attributes[ARM]] += 1
        else:
            self.requested[attributes[REQUEST]] = trial
        if WARM_FROM in attributes:
            self.has_warm = True
        elif trial.state != TrialState.FAIL or STOPPED in attributes:
            self.trainings.setdefault((attributes[TRAINING], attributes[SEED]), trial)
            self.choices.setdefault(attributes[CHOICE], trial)


class Standings:
    """Where a study stands, asked again and again: a trial that has ended is read once, for it
    never changes."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._ended = Standing()
        self._read = 0

    def now(self) -> Standing:
        """Where it stands now."""
        trials = self._study.get_trials(deepcopy=False)
        before, self._read = self._read, ended_before(trials, self._read)
        for trial in trials[before : self._read]:
            self._ended.add(trial)
        ended = self._ended
        standing = Standing(
            trials,
            [*ended.trials],
            ended.counts.copy(),
            {**ended.choices},
            {**ended.trainings},
            {**ended.requested},
            ended.has_warm,
        )
        for trial in trials[self._read :]:
            standing.add(trial)
        return standing


def ended_before(trials: Sequence[FrozenTrial], start: int) -> int:
    """The first position from `start` on whose trial has not ended."""
    while start < len(trials) and trials[start].state.is_finished():
        start += 1
    return start


def is_same(one: FrozenTrial, other: FrozenTrial) -> bool:
    """Whether two trials are for one request, or train the same."""
    request = one.user_attrs.get(REQUEST)
    for_one = request is not None and request == other.user_attrs.get(REQUEST)
    return for_one or is_same_training(one, other)


def is_same_training(one: FrozenTrial, other: FrozenTrial) -> bool:
    """Whether two trials train the same with the same seed, neither having failed."""
    same = all(one.user_attrs[key] == other.user_attrs[key] for key in (TRAINING, SEED))
    return same and TrialState.FAIL not in (one.state, other.state)


def training_of(choice: Choice, plan: Plan) -> str:
    """What `TRAINING` says of a trial."""
    return f"{plan.digest}:{choice.learning_rate!r}"


def interrupted(study: optuna.Study, left: Collection[int] | None = None) -> list[Choice]:
    """Settle what a dead driver left behind; returns the choices that must be trained again.

    Beside those that `settle` ends they are those of trials that were cut off before, in the order
    they were asked, without those that have been trained since and without repetitions, which are
    chosen anew. One that a user has asked for is not among them: its request stands again.
    """
    settle(study, left)
    trials = study.get_trials(deepcopy=False)
    trained = {
        trial.user_attrs[CHOICE]
        for trial in trials
        if is_handed_out(trial) and WARM_FROM not in trial.user_attrs
    }
    cut_off = {
        trial.user_attrs[CHOICE]: trial
        for trial in trials
        if INTERRUPTED in trial.user_attrs
        and CHOICE in trial.user_attrs
        and REPEAT not in trial.user_attrs
        and REQUEST not in trial.user_attrs
    }
    return [choice_of(trial) for text, trial in cut_off.items() if text not in trained]


def settle(study: optuna.Study, left: Collection[int] | None = None) -> None:
    """Tell FAIL the trials left RUNNING, or of them those numbered in `left`."""
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if left is not None and frozen.number not in left:
            continue
        trial = opened(study, frozen)
        # another driver may be faster
        with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
            trial.set_user_attr(INTERRUPTED, True)
            trial.set_user_attr(REASON, "the driver ended before the trial did")
            study.tell(trial, state=TrialState.FAIL)
