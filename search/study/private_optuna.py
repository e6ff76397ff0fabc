"""What ranksweep takes of Optuna beyond what it promises: after an upgrade, look here.

A study keeps its storage and the ids of its trials to itself, and only `Study.optimize` beats for
trials. Here they are read, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, Trial

#: What Optuna's cache asks of the storage behind it that reads or writes the database.
STORAGE_CALLS: Sequence[str] = (
    "create_new_study",
    "delete_study",
    "get_all_studies",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "set_study_user_attr",
    "set_study_system_attr",
    "_create_new_trial",
    "_get_trials",
    "_get_best_trial_id",
    "get_trial",
    "get_trial_id_from_study_id_trial_number",
    "_set_trial_param",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "record_heartbeat",
    "_get_stale_trial_ids",
)


def trial_id(trial: Trial | FrozenTrial) -> int:
    """The storage's id of a trial, which a beat is for."""
    return int(trial._trial_id)


def opened(study: optuna.Study, trial: FrozenTrial) -> Trial:
    """A running trial of the study, to report to and to tell the end of."""
    return Trial(study, trial._trial_id)


def add_running(study: optuna.Study, trial: FrozenTrial) -> Trial:
    """Add a trial as `Study.add_trial` does, which keeps to itself what it has made.

    Raises:
        ValueError: the study has a parameter of the trial over other values.
    """
    return Trial(study, study._storage.create_new_trial(study._study_id, trial))


def beat_seconds(study: optuna.Study) -> float:
    """How often a driver of the study is to beat for its trials."""
    return float(study._storage.get_heartbeat_interval())  # type: ignore[attr-defined]


def beat(study: optuna.Study, of: int) -> None:
    """Beat for the trial of this id."""
    study._storage.record_heartbeat(of)  # type: ignore[attr-defined]


def without_a_beat(study: optuna.Study) -> set[int]:
    """Ids of the running trials that none has beaten for within the grace period."""
    return set(study._storage._get_stale_trial_ids(study._study_id))  # type: ignore[attr-defined]
