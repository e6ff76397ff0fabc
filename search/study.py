"""A sweep's Optuna study: how it is opened, resumed and read.

What stands in a trial's user attributes is named here; how a trial comes by its state is told in
search/searcher.py, how several drivers share a study in search/shared_study.py.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from search.patient_storage import PatientStorage
from spaces.choice import Choice
from spaces.errors import ConfigError
from spaces.methods import parse_choice
from spaces.plan import Plan
from trainables.private import redacted, redacted_text

CHOICE = "choice"
METHOD = "method"
ARM = "arm"
TRAINABLE_PARAMS = "trainable_params"
PLAN_DIGEST = "plan_digest"
TRAINING = "training"
"""Plan digest and learning rate: trials of one sweep that agree in it, and in the seed, are the
same training, whatever their choices are called."""
SEED = "seed"
REPEAT = "repeat"
"""From 1: which repetition, with another seed, of a choice that the sweep has trained."""
WARM_START_FROM = "warm_start_from"
"""MLflow run of an earlier sweep that the choice is from."""
RUN_ID = "mlflow_run_id"
REASON = "reason"
CURVE = "curve"
REJECTED = "ranksweep_rejected"
INTERRUPTED = "ranksweep_interrupted"
DUPLICATE_OF = "ranksweep_duplicate_of"
"""Number of the complete trial whose values this one was told: it is the same training."""
DRIVER = "driver"
"""Whose trial it is, where several drivers share a study."""

ENDED_AS = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
"""Optuna's name of the state that a trial has ended in -> ours."""

BEAT_SECONDS = 20
GRACE_SECONDS = 120


def directions(objectives: Sequence[str], mode: str) -> list[str]:
    """Optuna's direction per objective: counts and losses are minimized, metrics follow `mode`."""
    toward = {"max": "maximize", "min": "minimize"}[mode]
    falling = (TRAINABLE_PARAMS, "dev_loss", "train_loss")
    return ["minimize" if name in falling else toward for name in objectives]


def make_sampler(name: str, seed: int, asked: int = 0) -> optuna.samplers.BaseSampler:
    """The sampler `tpe` or `random`.

    `asked` is the number of trials the study already holds: a sampler that goes on with a study
    must not draw again what it drew first.

    Raises:
        ConfigError: no such sampler.
    """
    if asked:
        seed = (seed + 7919 * asked) % 2**32
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # `group` models each method's own parameters on that method's trials alone.
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=True, group=True, constant_liar=True
            )
    raise ConfigError(f"search.sampler: {name!r} is not a sampler; use 'tpe' or 'random'")


def open_study(
    storage: str,
    name: str,
    *,
    objectives: Sequence[str],
    mode: str,
    sampler: str,
    seed: int,
    beat_seconds: int | None = None,
    grace_seconds: int = GRACE_SECONDS,
    impatient: Callable[[], bool] = lambda: False,
) -> optuna.Study:
    """Create the study in an RDB storage (an SQLAlchemy URL), or go on with the one that is there.

    With `beat_seconds` a driver is to beat for its trials so often, and a trial that none has
    beaten for since `grace_seconds` is stale. A database that goes away later is waited for, unless
    `impatient` says not to (search/patient_storage.py).

    Raises:
        ConfigError: the study that is there was made for other objectives, or the storage cannot be
            reached, without its credentials.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    wanted = directions(objectives, mode)
    with _reached(storage):
        study = optuna.create_study(
            storage=_storage(storage, beat_seconds, grace_seconds, impatient),
            study_name=name,
            directions=wanted,
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
    found = [direction.name.lower() for direction in study.directions]
    if found != wanted:
        raise ConfigError(
            f"search.objectives: the study {name!r} was made with directions {found}, not "
            f"{wanted}; keep its objectives or give the sweep another name"
        )
    trials = study.get_trials(deepcopy=False)
    if any(CHOICE in each.user_attrs and TRAINING not in each.user_attrs for each in trials):
        raise ConfigError(
            f"name: the study {name!r} was made by an older ranksweep; launch under another name "
            "(--set name=...), which finds the profile in the store"
        )
    study.sampler = make_sampler(sampler, seed, asked=len(trials))
    return study


def study_url(text: str) -> str:
    """The SQLAlchemy URL of a study, that of a SQLite file made absolute.

    Raises ConfigError where it is none, names no file, or its driver is not installed.
    """
    with _reached(text):
        url = make_url(text)
        url.get_dialect().import_dbapi()
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise ConfigError("search.study: names no file; write sqlite:////directory/file.db")
        url = url.set(database=str(Path(url.database).absolute()))
    return url.render_as_string(hide_password=False)


def check_database(url: str) -> None:
    """Connect to a study's database once. Raises ConfigError, without its credentials."""
    with _reached(url):
        engine = create_engine(url)
        engine.connect().close()
        engine.dispose()


@contextmanager
def _reached(url: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"search.study: no driver for {redacted(url)} is installed; for PostgreSQL run "
            "`pip install 'ranksweep[postgres]'` and write postgresql+psycopg://..."
        ) from error
    except (ArgumentError, NoSuchModuleError):
        raise ConfigError(
            "search.study: is no SQLAlchemy URL of a database; write "
            "postgresql+psycopg://user@host/database or sqlite:////directory/file.db"
        ) from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = " ".join(redacted_text(str(error.__cause__ or error)).split())[:300]
        raise ConfigError(
            f"search.study: {redacted(url)} cannot be opened ({reason}); check that the database "
            "runs and that the URL names it"
        ) from None


def _storage(
    url: str, beat_seconds: int | None, grace_seconds: int, impatient: Callable[[], bool]
) -> PatientStorage:
    # Reports and queries may read the file while the driver writes to it.
    engine = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = PatientStorage(
            url,
            engine_kwargs=engine,
            heartbeat_interval=beat_seconds,
            grace_period=None if beat_seconds is None else grace_seconds,
        )
    storage.impatient = impatient
    return storage


# -- where a study stands --------------------------------------------------------------------------


def is_handed_out(trial: FrozenTrial) -> bool:
    """Whether a trial counts: trained or being trained, not rejected, interrupted or answered."""
    attributes = trial.user_attrs
    return CHOICE in attributes and not attributes.keys() & {REJECTED, INTERRUPTED, DUPLICATE_OF}


def handed_out(study: optuna.Study) -> list[FrozenTrial]:
    """The study's trials that count."""
    return [trial for trial in study.get_trials(deepcopy=False) if is_handed_out(trial)]


@dataclass
class Standing:
    """What of a study decides on its next trial, read at one moment."""

    all_trials: Sequence[FrozenTrial] = ()
    trials: list[FrozenTrial] = field(default_factory=list)
    """Those that count."""
    counts: Counter[str] = field(default_factory=Counter)
    """Arm -> how many."""
    choices: dict[str, FrozenTrial] = field(default_factory=dict)
    """Text of a choice -> a trial of it, one that failed left out."""
    trainings: dict[tuple[str, int], FrozenTrial] = field(default_factory=dict)
    """`TRAINING` and seed -> its trial, one that failed left out."""

    @property
    def unrepeated_run(self) -> bool:
        """Whether a trial runs that is no repetition."""
        return any(
            trial.state == TrialState.RUNNING and REPEAT not in trial.user_attrs
            for trial in self.trials
        )

    @property
    def handed(self) -> int:
        """How many trials count."""
        return len(self.trials)

    def add(self, trial: FrozenTrial) -> None:
        """Take in the next trial of the study."""
        attributes = trial.user_attrs
        if DUPLICATE_OF in attributes:
            self.choices.setdefault(attributes[CHOICE], trial)
        if not is_handed_out(trial):
            return
        self.trials.append(trial)
        self.counts[attributes[ARM]] += 1
        if trial.state != TrialState.FAIL:
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
        before, self._read = self._read, _ended_before(trials, self._read)
        for trial in trials[before : self._read]:
            self._ended.add(trial)
        ended = self._ended
        standing = Standing(
            trials, [*ended.trials], ended.counts.copy(), {**ended.choices}, {**ended.trainings}
        )
        for trial in trials[self._read :]:
            standing.add(trial)
        return standing


def _ended_before(trials: Sequence[FrozenTrial], start: int) -> int:
    """The first position from `start` on whose trial has not ended."""
    while start < len(trials) and trials[start].state.is_finished():
        start += 1
    return start


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
    chosen anew.
    """
    settle(study, left)
    trials = study.get_trials(deepcopy=False)
    trained = {trial.user_attrs[CHOICE] for trial in trials if is_handed_out(trial)}
    cut_off = dict.fromkeys(
        trial.user_attrs[CHOICE]
        for trial in trials
        if INTERRUPTED in trial.user_attrs
        and CHOICE in trial.user_attrs
        and REPEAT not in trial.user_attrs
    )
    return [parse_choice(json.loads(text)) for text in cut_off if text not in trained]


def settle(study: optuna.Study, left: Collection[int] | None = None) -> None:
    """Tell FAIL the trials left RUNNING, or of them those numbered in `left`."""
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if left is not None and frozen.number not in left:
            continue
        trial = optuna.trial.Trial(study, frozen._trial_id)
        # another driver may be faster
        with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
            trial.set_user_attr(INTERRUPTED, True)
            trial.set_user_attr(REASON, "the driver ended before the trial did")
            study.tell(trial, state=TrialState.FAIL)


def choice_text(choice: Choice) -> str:
    return json.dumps(choice.as_dict(), sort_keys=True)


def states_of(study: optuna.Study) -> dict[str, int]:
    """How many trials of a study ended in each state: complete, pruned, failed, cancelled.

    `duplicate` counts those that were answered from another and not trained.
    """
    counts: Counter[str] = Counter()
    for trial in study.get_trials(deepcopy=False):
        attributes = trial.user_attrs
        if CHOICE not in attributes or REJECTED in attributes:
            continue
        state = ENDED_AS.get(trial.state.name)
        if INTERRUPTED in attributes:
            state = "cancelled"
        elif DUPLICATE_OF in attributes:
            state = "duplicate"
        if state is not None:
            counts[state] += 1
    return dict(counts)


# -- what is best ----------------------------------------------------------------------------------


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


def measured(trials: Iterable[FrozenTrial], mode: str) -> list[Measured]:
    """The trainings that are complete, best first; of equal ones the smaller, then the earlier."""
    named: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            attributes = trial.user_attrs
            named.setdefault(attributes[TRAINING], []).append(trial)
    found = [
        Measured([trial for trial in group if DUPLICATE_OF not in trial.user_attrs], group)
        for group in named.values()
    ]
    sign = -1.0 if mode == "max" else 1.0
    return sorted(found, key=lambda each: (sign * each.value, each.params, each.first.number))


def best_of_each_method(study: optuna.Study, mode: str, top: int = 1) -> list[dict[str, Any]]:
    """The best `top` choices of each arm, best first: method, arm, value, choice, size.

    `value` is the mean over `seeds` trials of the choice, `values` are theirs. A choice that was
    answered from another arm's trial has the number and the run of that trial.
    """
    return _best_of_arms(study.get_trials(deepcopy=False), mode, top)


def _best_of_arms(trials: Iterable[FrozenTrial], mode: str, top: int = 1) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    taken: Counter[str] = Counter()
    for each in measured(trials, mode):
        by_arm: dict[str, FrozenTrial] = {}
        for trial in each.named:
            by_arm.setdefault(trial.user_attrs[ARM], trial)
        for arm, trial in by_arm.items():
            taken[arm] += 1
            if taken[arm] <= top:
                rows.append(
                    {
                        "method": trial.user_attrs[METHOD],
                        "arm": arm,
                        "value": each.value,
                        "values": [float(t.values[0]) for t in each.trials],
                        "seeds": len(each.trials),
                        "trainable_params": each.params,
                        "number": each.first.number,
                        "run_id": each.first.user_attrs.get(RUN_ID),
                        "choice": json.loads(trial.user_attrs[CHOICE]),
                    }
                )
    return rows


class WorthKeeping:
    """Which complete trials have weights that are worth keeping, asked again and again.

    They are each method's best, and the Pareto front where there are two objectives. Of a choice
    with several seeds it is the first trial. What was not worth it once is not looked at again, for
    its weights are gone, and a search that is long would take ever longer.
    """

    def __init__(self, study: optuna.Study, mode: str) -> None:
        self._study, self._mode = study, mode
        self._kept: set[int] = set()
        self._read = 0

    def __call__(self) -> set[int]:
        """Their numbers."""
        every = self._study.get_trials(deepcopy=False)
        candidates = [*(every[number] for number in self._kept), *every[self._read :]]
        self._read = _ended_before(every, self._read)
        trainings = {trial.user_attrs.get(TRAINING) for trial in candidates}
        trials = [trial for trial in every if trial.user_attrs.get(TRAINING) in trainings]
        self._kept = {row["number"] for row in _best_of_arms(trials, self._mode)}
        if len(self._study.directions) > 1:
            fewest = float("inf")
            for each in measured(trials, self._mode):  # best first
                if each.params < fewest:
                    fewest = each.params
                    self._kept.add(each.first.number)
        return set(self._kept)


def next_repeat(
    standing: Standing, mode: str, top: int, seeds: int
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
    for each in measured(standing.trials, mode):
        used = done.get(each.first.user_attrs[TRAINING], set())
        if used and len(used) < seeds:
            return each.first, min(set(range(1, seeds + 1)) - used)
        if not used and fresh is None:
            fresh = each.first
    return None if fresh is None or len(done) >= top else (fresh, 1)


def run_ids(study: optuna.Study) -> dict[int, str]:
    """Trial number -> id of its MLflow run, for the trials that have one."""
    trials = study.get_trials(deepcopy=False)
    return {t.number: t.user_attrs[RUN_ID] for t in trials if RUN_ID in t.user_attrs}
