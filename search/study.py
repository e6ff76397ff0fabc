"""A sweep's Optuna study: how it is opened, resumed and read.

What stands in a trial's user attributes is named here; how a trial comes by its state is told in
search/searcher.py.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from spaces.choice import Choice
from spaces.errors import ConfigError
from spaces.methods import parse_choice

CHOICE = "choice"
METHOD = "method"
ARM = "arm"
TRAINABLE_PARAMS = "trainable_params"
PLAN_DIGEST = "plan_digest"
RUN_ID = "mlflow_run_id"
REASON = "reason"
CURVE = "curve"
REJECTED = "ranksweep_rejected"
INTERRUPTED = "ranksweep_interrupted"


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
    storage: str, name: str, *, objectives: Sequence[str], mode: str, sampler: str, seed: int
) -> optuna.Study:
    """Create the study in an RDB storage (an SQLAlchemy URL), or go on with the one that is there.

    Raises:
        ConfigError: the study that is there was made for other objectives.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    wanted = directions(objectives, mode)
    # Reports and queries may read the file while the driver writes to it.
    engine = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {}
    study = optuna.create_study(
        storage=optuna.storages.RDBStorage(storage, engine_kwargs=engine),
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
    study.sampler = make_sampler(sampler, seed, asked=len(study.get_trials(deepcopy=False)))
    return study


def handed_out(study: optuna.Study) -> list[FrozenTrial]:
    """The study's trials that count: trained or being trained, neither rejected nor interrupted."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if CHOICE in trial.user_attrs
        and REJECTED not in trial.user_attrs
        and INTERRUPTED not in trial.user_attrs
    ]


def interrupted(study: optuna.Study) -> list[Choice]:
    """Settle what a dead driver left behind; returns the choices that must be trained again.

    Trials left RUNNING are told FAIL. Their choices, and those of trials that were cut off before,
    are returned in the order they were asked, without those that have been trained since.
    """
    drop_waiting(study)
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        trial = optuna.trial.Trial(study, frozen._trial_id)
        trial.set_user_attr(INTERRUPTED, True)
        trial.set_user_attr(REASON, "the driver ended before the trial did")
        study.tell(trial, state=TrialState.FAIL)
    trained = {trial.user_attrs[CHOICE] for trial in handed_out(study)}
    cut_off = dict.fromkeys(
        trial.user_attrs[CHOICE]
        for trial in study.get_trials(deepcopy=False)
        if INTERRUPTED in trial.user_attrs and CHOICE in trial.user_attrs
    )
    return [parse_choice(json.loads(text)) for text in cut_off if text not in trained]


def drop_waiting(study: optuna.Study) -> None:
    """Tell FAIL the points that were enqueued and never asked: the next `ask` would pop them."""
    for _ in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        trial = study.ask()
        trial.set_user_attr(REJECTED, "enqueued and never asked for")
        study.tell(trial, state=TrialState.FAIL)


def choice_text(choice: Choice) -> str:
    return json.dumps(choice.as_dict(), sort_keys=True)


def states_of(study: optuna.Study) -> dict[str, int]:
    """How many trials of a study ended in each state: complete, pruned, failed, cancelled."""
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    counts: Counter[str] = Counter()
    for trial in study.get_trials(deepcopy=False):
        if CHOICE not in trial.user_attrs or REJECTED in trial.user_attrs:
            continue
        state = "cancelled" if INTERRUPTED in trial.user_attrs else names.get(trial.state.name)
        if state is not None:
            counts[state] += 1
    return dict(counts)


def best_of_each_method(study: optuna.Study, mode: str, top: int = 1) -> list[dict[str, Any]]:
    """The best `top` complete trials of each arm, best first: method, arm, value, choice, size."""
    sign = -1.0 if mode == "max" else 1.0
    rows: dict[str, list[dict[str, Any]]] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name == "COMPLETE":
            attributes = trial.user_attrs
            rows.setdefault(attributes[ARM], []).append(
                {
                    "method": attributes[METHOD],
                    "arm": attributes[ARM],
                    "value": trial.values[0],
                    "trainable_params": attributes[TRAINABLE_PARAMS],
                    "number": trial.number,
                    "run_id": attributes.get(RUN_ID),
                    "choice": json.loads(attributes[CHOICE]),
                }
            )

    def rank(row: Mapping[str, Any]) -> tuple[float, int, int]:
        return sign * row["value"], row["trainable_params"], row["number"]

    kept = [row for each in rows.values() for row in sorted(each, key=rank)[:top]]
    return sorted(kept, key=rank)


def worth_keeping(study: optuna.Study, mode: str) -> set[int]:
    """Numbers of the complete trials whose weights are worth keeping.

    They are each method's best, and the Pareto front where there are two objectives.
    """
    kept = {row["number"] for row in best_of_each_method(study, mode)}
    if len(study.directions) > 1:
        kept |= {trial.number for trial in study.best_trials}
    return kept


def run_ids(study: optuna.Study) -> dict[int, str]:
    """Trial number -> id of its MLflow run, for the trials that have one."""
    trials = study.get_trials(deepcopy=False)
    return {t.number: t.user_attrs[RUN_ID] for t in trials if RUN_ID in t.user_attrs}
