"""A sweep's Optuna study: how it is opened, resumed and read.

What stands in a trial's user attributes is named here; how a trial comes by its state is told in
search/study/ledger.py, how several drivers share a study in search/study/shared.py.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import FrozenTrial

from search.config.database import reached
from search.redaction import redacted
from search.study.patient_storage import PatientStorage
from spaces.choice import Choice
from spaces.errors import ConfigError
from spaces.methods.registry import from_record, recorded

Study = optuna.Study

CHOICE = "choice"
METHOD = "method"
ARM = "arm"
TRAINABLE_PARAMS = "trainable_params"
FEATURES = "features"
"""Those of its plan (spaces/features.py), rounded: name -> value."""
PLAN_DIGEST = "plan_digest"
STAGES = "stages"
"""How many stages its plan has."""
TRAINING = "training"
"""Plan digest and learning rate: trials of one sweep that agree in it, and in the seed, are the
same training, whatever their choices are called."""
SEED = "seed"
REPEAT = "repeat"
"""From 1: which repetition, with another seed, of a choice that the sweep has trained."""
WARM_START_FROM = "warm_start_from"
"""MLflow run of an earlier sweep that the choice is from."""
RUN_ID = "mlflow_run_id"
LINK = "mlflow_link"
"""To its page in MLflow, where that is a server."""
REASON = "reason"
CURVE = "curve"
LOOKS = "looks"
"""Share of the training rows, as text -> value of a trial that was trained on so many first."""
REJECTED = "ranksweep_rejected"
INTERRUPTED = "ranksweep_interrupted"
DUPLICATE_OF = "ranksweep_duplicate_of"
"""Number of the complete trial whose values this one was told: it is the same training."""
STOPPED = "ranksweep_stopped"
"""A user has ended it, and does not want it trained again."""
REQUEST = "ranksweep_request"
"""Id of the request of a user's that the trial is for; it is none of `search.trials`."""
ASKED_BY = "asked_by"
"""How it was asked for: `enqueued` or `cloned`."""
CLONE_OF = "clone_of"
"""Number of the trial whose choice was changed."""
WARM_FROM = "warm_from"
"""Number of the trial whose trained weights it started from: its value is not that of its choice
trained from the base, and is compared with no other."""
COLLAPSED = "ranksweep_collapsed"
"""Its last epoch has predicted one class for every row of dev."""
DRIVER = "driver"
"""Whose trial it is, where several drivers share a study."""

_BEGUN_BY = "ranksweep_begun_by"
_VERSION = 2
"""Of a study's records: version 2 has each key of a choice, and warm-ups from a rate above 0."""

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
    """The sampler `tpe` or `random`, for a `grid` one that is never asked, and for `plan` the one
    that draws where its model does not propose (search/study/plan_sampler.py).

    `asked` is the number of trials the study already holds: a sampler that goes on with a study
    must not draw again what it drew first.

    Raises:
        ConfigError: no such sampler.
    """
    if asked:
        seed = (seed + 7919 * asked) % 2**32
    if name in ("random", "grid", "plan"):
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # `group` models each method's own parameters on that method's trials alone.
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=True, group=True, constant_liar=True
            )
    raise ConfigError(
        f"search.sampler: {name!r} is not a sampler; use 'plan', 'tpe', 'random' or 'grid'"
    )


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
    `impatient` says not to (search/study/patient_storage.py).

    Raises:
        ConfigError: the study that is there was made for other objectives, or the storage cannot be
            reached, without its credentials.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    wanted = directions(objectives, mode)
    # a RuntimeError: the tables are of another version of Optuna
    with reached(storage, StorageInternalError, RuntimeError):
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
    if not trials:
        study.set_user_attr(_BEGUN_BY, _VERSION)
    if study.metric_names != list(objectives):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(objectives))
    study.sampler = make_sampler(sampler, seed, asked=len(trials))
    return study


def existing_study(storage: str, name: str, patience: float = 20.0) -> optuna.Study:
    """A study that is there, for those who read it or ask something of its driver.

    Raises ConfigError where there is none of the name, or the storage cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # a RuntimeError: the tables are of another version of Optuna
    with reached(storage, StorageInternalError, RuntimeError):
        opened = _storage(storage, None, GRACE_SECONDS, lambda: False)
        opened.patience = patience
        try:
            return optuna.load_study(study_name=name, storage=opened)
        except KeyError:
            raise ConfigError(
                f"SWEEP: there is no study of a sweep {name!r} in {redacted(storage)}; name the "
                "database that its search.study names"
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


def is_older(study: optuna.Study) -> bool:
    """Whether an older ranksweep has begun the study."""
    return int(study.user_attrs.get(_BEGUN_BY, 1)) < _VERSION


def choice_text(choice: Choice, older: bool = False) -> str:
    """A choice as `CHOICE` says it in a study, an `older` one or not: equal where choices are."""
    values = choice.as_dict()
    return json.dumps(recorded(values) if older else values, sort_keys=True)


def choice_of(trial: FrozenTrial) -> Choice:
    """The choice that a trial stands for."""
    return from_record(json.loads(trial.user_attrs[CHOICE]))


@contextmanager
def over_the_same_space() -> Iterator[None]:
    """While open, Optuna's refusal of a parameter over other values is told as what it means.

    Raises:
        ConfigError: the study was made over another space.
    """
    try:
        yield
    except ValueError as error:
        raise ConfigError(
            f"space: does not fit the study it is searched with ({error}); "
            "keep the space of the first launch or give the sweep another name"
        ) from error


def ended_as(trial: FrozenTrial) -> str | None:
    """How a trial has ended; None while it has not."""
    if STOPPED in trial.user_attrs:
        return "stopped"
    return "interrupted" if INTERRUPTED in trial.user_attrs else ENDED_AS.get(trial.state.name)


def states_of(study: optuna.Study) -> dict[str, int]:
    """How many trials of a study ended in each state: complete, pruned, failed, stopped, cancelled.

    `duplicate` counts those that were answered from another and not trained.
    """
    counts: Counter[str] = Counter()
    for trial in study.get_trials(deepcopy=False):
        attributes = trial.user_attrs
        if CHOICE not in attributes or REJECTED in attributes:
            continue
        state = ended_as(trial)
        if INTERRUPTED in attributes:
            state = "cancelled"
        elif DUPLICATE_OF in attributes:
            state = "duplicate"
        if state is not None:
            counts[state] += 1
    return dict(counts)


def run_ids(study: optuna.Study) -> dict[int, str]:
    """Trial number -> id of its MLflow run, for the trials that have one."""
    trials = study.get_trials(deepcopy=False)
    return {t.number: t.user_attrs[RUN_ID] for t in trials if RUN_ID in t.user_attrs}
