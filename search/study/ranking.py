"""What is best in a study, and what is repeated next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.objective import Objective
from search.queries.best_choice import BestChoice
from search.study.standing import Standing, ended_before
from search.study.study import (
    ARM,
    DUPLICATE_OF,
    METHOD,
    REPEAT,
    RUN_ID,
    TRAINABLE_PARAMS,
    TRAINING,
    WARM_FROM,
    choice_of,
)


@dataclass(frozen=True)
class Measured:
    """The complete trials of one training, by number: the first and its repetitions.

    They differ in their seeds alone. `named` holds all that stand for it, those too that were
    answered from it.
    """

    trials: Sequence[FrozenTrial]
    named: Sequence[FrozenTrial]

    @cached_property
    def value(self) -> float:
        """Mean over the seeds of the study's first objective."""
        return fmean(trial.values[0] for trial in self.trials)

    @property
    def first(self) -> FrozenTrial:
        """The trial of the sweep's own seed."""
        return self.trials[0]

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return int(self.first.user_attrs[TRAINABLE_PARAMS])


def measured(trials: Iterable[FrozenTrial], objective: Objective) -> list[Measured]:
    """The trainings that are complete, best first; of equal ones the smaller, then the earlier.

    One that started from the weights of another has trained for longer and is ranked with none.
    """
    named: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE and WARM_FROM not in trial.user_attrs:
            attributes = trial.user_attrs
            named.setdefault(attributes[TRAINING], []).append(trial)
    found = [
        Measured([trial for trial in group if DUPLICATE_OF not in trial.user_attrs], group)
        for group in named.values()
    ]
    return sorted(
        found, key=lambda each: (-objective.gain(each.value), each.params, each.first.number)
    )


def best_of_each_method(
    study: optuna.Study, objective: Objective, top: int = 1
) -> list[BestChoice]:
    """The best `top` choices of each arm, best first."""
    return _best_of_arms(study.get_trials(deepcopy=False), objective, top)


def _best_of_arms(
    trials: Iterable[FrozenTrial], objective: Objective, top: int = 1
) -> list[BestChoice]:
    rows: list[BestChoice] = []
    taken: Counter[str] = Counter()
    for each in measured(trials, objective):
        by_arm: dict[str, FrozenTrial] = {}
        for trial in each.named:
            by_arm.setdefault(trial.user_attrs[ARM], trial)
        for arm, trial in by_arm.items():
            taken[arm] += 1
            if taken[arm] <= top:
                rows.append(_best_choice(each, trial))
    return rows


def _best_choice(each: Measured, trial: FrozenTrial) -> BestChoice:
    """A training, as the trial has it that stands for it."""
    return BestChoice(
        method=trial.user_attrs[METHOD],
        arm=trial.user_attrs[ARM],
        value=each.value,
        values=[float(t.values[0]) for t in each.trials],
        seeds=len(each.trials),
        trainable_params=each.params,
        number=each.first.number,
        run_id=each.first.user_attrs.get(RUN_ID),
        choice=choice_of(trial).as_dict(),
    )


def pareto_front(study: optuna.Study, objective: Objective) -> list[BestChoice]:
    """The choices that no other beats in value or parameters without losing in the other, fewest
    parameters first."""
    return _front_of(study.get_trials(deepcopy=False), objective)


def _front_of(trials: Iterable[FrozenTrial], objective: Objective) -> list[BestChoice]:
    rows: list[BestChoice] = []
    for each in measured(trials, objective):  # best first, of equal ones the smaller
        if not rows or each.params < rows[-1].trainable_params:
            rows.append(_best_choice(each, each.first))
    return rows[::-1]


@dataclass(frozen=True)
class WarmTrial:
    """A complete trial that started from the trained weights of trial `warm_from`."""

    number: int
    arm: str
    warm_from: int
    value: float


def warm_trials(trials: Iterable[FrozenTrial]) -> list[WarmTrial]:
    """Those that started from the weights of others and are complete, by number."""
    return [
        WarmTrial(
            trial.number,
            trial.user_attrs[ARM],
            trial.user_attrs[WARM_FROM],
            float(trial.values[0]),
        )
        for trial in trials
        if trial.state == TrialState.COMPLETE and WARM_FROM in trial.user_attrs
    ]


class WorthKeeping:
    """Which complete trials have weights that are worth keeping, asked again and again.

    They are each method's best, and the Pareto front where there are two objectives; and those that
    a user had started from the weights of others, for no other has what they have. Of a choice
    with several seeds it is the first trial. What was not worth it once is not looked at again, for
    its weights are gone, and a search that is long would take ever longer.
    """

    def __init__(self, study: optuna.Study, objective: Objective) -> None:
        self._study, self._objective = study, objective
        self._kept: set[int] = set()
        self._read = 0

    def __call__(self) -> set[int]:
        """Their numbers."""
        every = self._study.get_trials(deepcopy=False)
        candidates = [*(every[number] for number in self._kept), *every[self._read :]]
        self._read = ended_before(every, self._read)
        trainings = {trial.user_attrs.get(TRAINING) for trial in candidates}
        trials = [trial for trial in every if trial.user_attrs.get(TRAINING) in trainings]
        self._kept = {row.number for row in _best_of_arms(trials, self._objective)}
        if len(self._study.directions) > 1:
            self._kept |= {row.number for row in _front_of(trials, self._objective)}
        self._kept |= {row.number for row in warm_trials(candidates)}
        return set(self._kept)


def next_repeat(
    standing: Standing, objective: Objective, top: int, seeds: int
) -> tuple[FrozenTrial, int] | None:
    """The trial whose choice is to be trained with another seed next, and which repetition it is.

    A choice that has begun is given its `seeds` repetitions before the best that has none follows.
    None where `top` choices, or all that there are, have them.
    """
    done: dict[str, set[int]] = {}
    for trial in standing.trials:
        if REPEAT in trial.user_attrs:
            done.setdefault(trial.user_attrs[TRAINING], set()).add(trial.user_attrs[REPEAT])
    fresh: FrozenTrial | None = None
    for each in measured(standing.trials, objective):
        used = done.get(each.first.user_attrs[TRAINING], set())
        if used and len(used) < seeds:
            return each.first, min(set(range(1, seeds + 1)) - used)
        if not used and fresh is None:
            fresh = each.first
    return None if fresh is None or len(done) >= top else (fresh, 1)
