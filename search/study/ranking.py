"""What is best in a study, and what is repeated next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.objective import Objective
from search.queries.best_choice import BestChoice
from search.queries.holding import Seeds, noise_of
from search.study.standing import Standing, ended_before
from search.study.study import (
    ARM,
    COLLAPSED,
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
    def seeds(self) -> Seeds:
        """What its seeds have of the study's first objective, and how many have collapsed."""
        values = tuple(float(trial.values[0]) for trial in self.trials)
        return Seeds(values, sum(COLLAPSED in trial.user_attrs for trial in self.trials))

    @property
    def first(self) -> FrozenTrial:
        """The trial of the sweep's own seed."""
        return self.trials[0]

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return int(self.first.user_attrs[TRAINABLE_PARAMS])


@dataclass(frozen=True)
class Ranked:
    """The trainings that are complete, best first, and the noise between seeds of a sweep.

    By what they hold (search/queries/holding.py), of equal ones the smaller, then the earlier.
    """

    trainings: Sequence[Measured]
    noise: float
    objective: Objective

    @property
    def by_arm(self) -> Iterator[tuple[str, Measured, FrozenTrial]]:
        """Every arm of every training, with the trial that stands for the training there."""
        for each in self.trainings:
            of_arm: dict[str, FrozenTrial] = {}
            for trial in each.named:
                of_arm.setdefault(trial.user_attrs[ARM], trial)
            for arm, trial in of_arm.items():
                yield arm, each, trial

    @property
    def front(self) -> list[Measured]:
        """Those that no other beats in rank or parameters without losing in the other, best
        first."""
        return _front(self.trainings)

    def row(self, each: Measured, trial: FrozenTrial) -> BestChoice:
        """A training, as the trial has it that stands for it."""
        seeds = each.seeds
        return BestChoice(
            method=trial.user_attrs[METHOD],
            arm=trial.user_attrs[ARM],
            value=seeds.mean,
            values=list(seeds.values),
            seeds=len(seeds.values),
            trainable_params=each.params,
            number=each.first.number,
            run_id=each.first.user_attrs.get(RUN_ID),
            choice=choice_of(trial).as_dict(),
            holds=seeds.holds(self.noise, self.objective),
            collapsed=seeds.collapsed,
        )


def ranked(
    trials: Iterable[FrozenTrial], objective: Objective, noise: float | None = None
) -> Ranked:
    """The trainings of trials that are complete, best first.

    One that started from the weights of another has trained for longer and is ranked with none.
    `noise` is that of the whole sweep, where these are a part of its trials.
    """
    found = _measured(trials)
    if noise is None:
        noise = noise_of(each.seeds for each in found)
    found.sort(
        key=lambda each: (*each.seeds.rank(noise, objective), each.params, each.first.number)
    )
    return Ranked(found, noise, objective)


def _front(best_first: Sequence[Measured]) -> list[Measured]:
    found: list[Measured] = []
    for each in best_first:  # of equal ones the smaller comes first
        if found and each.seeds.collapsed and not found[0].seeds.collapsed:
            break  # however small, it has learned nothing
        if not found or each.params < found[-1].params:
            found.append(each)
    return found


def _measured(trials: Iterable[FrozenTrial]) -> list[Measured]:
    named: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE and WARM_FROM not in trial.user_attrs:
            named.setdefault(trial.user_attrs[TRAINING], []).append(trial)
    return [
        Measured([trial for trial in group if DUPLICATE_OF not in trial.user_attrs], group)
        for group in named.values()
    ]


def best_of_each_method(
    study: optuna.Study, objective: Objective, top: int = 1
) -> list[BestChoice]:
    """The best `top` choices of each arm, best first."""
    return _best_of_arms(ranked(study.get_trials(deepcopy=False), objective), top)


def _best_of_arms(found: Ranked, top: int = 1) -> list[BestChoice]:
    rows: list[BestChoice] = []
    taken: Counter[str] = Counter()
    for arm, each, trial in found.by_arm:
        taken[arm] += 1
        if taken[arm] <= top:
            rows.append(found.row(each, trial))
    return rows


def pareto_front(study: optuna.Study, objective: Objective) -> list[BestChoice]:
    """The choices that no other beats in value or parameters without losing in the other, fewest
    parameters first."""
    return _front_of(ranked(study.get_trials(deepcopy=False), objective))


def _front_of(found: Ranked) -> list[BestChoice]:
    return [found.row(each, each.first) for each in reversed(found.front)]


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
    its weights are gone, and a search that is long would take ever longer. So while the best may
    yet fall, as others of its seeds are trained, `spare` more of each method are kept.
    """

    def __init__(self, study: optuna.Study, objective: Objective, spare: int = 0) -> None:
        self._study, self._objective, self._spare = study, objective, spare
        self._kept: set[int] = set()
        self._read = 0
        self.leader: BestChoice | None = None
        """The best of all, as of the last look."""

    def __call__(self) -> set[int]:
        """Their numbers."""
        return self._look(self._spare)

    def no_longer(self) -> set[int]:
        """The numbers of those that are spare once no trial is to come."""
        return self._look(self._spare) - self._look(0)

    def _look(self, spare: int) -> set[int]:
        every = self._study.get_trials(deepcopy=False)
        candidates = [*(every[number] for number in self._kept), *every[self._read :]]
        self._read = ended_before(every, self._read)
        trainings = {trial.user_attrs.get(TRAINING) for trial in candidates}
        trials = [trial for trial in every if trial.user_attrs.get(TRAINING) in trainings]
        found = ranked(trials, self._objective, _noise_between_seeds(every))
        best = _best_of_arms(found, 1 + spare)
        self.leader = best[0] if best else None
        self._kept = {row.number for row in best}
        if len(self._study.directions) > 1:
            self._kept |= {row.number for row in _front_of(found)}
        self._kept |= {row.number for row in warm_trials(candidates)}
        return set(self._kept)


def _noise_between_seeds(every: Sequence[FrozenTrial]) -> float:
    own = Counter(
        trial.user_attrs.get(TRAINING)
        for trial in every
        if trial.state == TrialState.COMPLETE and DUPLICATE_OF not in trial.user_attrs
    )
    trials = [trial for trial in every if own[trial.user_attrs.get(TRAINING)] > 1]
    return noise_of(each.seeds for each in _measured(trials)) if trials else 0.0


def next_repeat(
    standing: Standing, objective: Objective, top: int, seeds: int
) -> tuple[FrozenTrial, int] | None:
    """The trial whose choice is to be trained with another seed next, and which repetition it is.

    Of `top` * `seeds` repetitions each goes to the first of these that has not had `seeds` of them:
    the best, the best LoRA, with which all others are compared, and then the others in order; of
    two objectives those on the front first. They are ordered by their means, so one that falls with
    another seed makes room for the next. The last one is LoRA's where it has had none. None where
    all are spent, or there is nothing to repeat.
    """
    done: dict[str, set[int]] = {}
    for trial in standing.trials:
        if REPEAT in trial.user_attrs:
            done.setdefault(trial.user_attrs[TRAINING], set()).add(trial.user_attrs[REPEAT])
    left = top * seeds - sum(map(len, done.values()))
    order = _by_mean(standing.trials, objective)
    if left <= 0 or not order:
        return None
    if len(order[0].first.values) > 1:
        order = [*_front(order), *order]
    own = [each for each in order if each.first.user_attrs[METHOD] == "lora"][:1]
    order = [order[0], *own, *order[1:]]
    if left == 1 and own and not done.get(_training(own[0])):
        order = own + order
    for each in order:
        unused = set(range(1, seeds + 1)) - done.get(_training(each), set())
        if unused:
            return each.first, min(unused)
    return None


def _by_mean(trials: Iterable[FrozenTrial], objective: Objective) -> list[Measured]:
    """Best first. By what they hold, all that had a second look would come before all that had
    none."""
    return sorted(
        _measured(trials),
        key=lambda each: (
            each.seeds.collapsed > 0,
            -objective.gain(each.seeds.mean),
            each.params,
            each.first.number,
        ),
    )


def _training(each: Measured) -> str:
    return str(each.first.user_attrs[TRAINING])
