"""What a dead driver has left open in a sweep's journal, ended as the study says of it."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial

from search.study.study import CURVE, ENDED_AS, INTERRUPTED, REASON
from search.tracking.facts import now_ms
from search.tracking.journal import Journal, end_of_trial


def end_what_was_left_open(journal: Journal, study: optuna.Study, objective: str) -> None:
    """End in the journal what a dead driver has left open: trials as the study says of them.

    A driver may die after it has told the study and before it has told the journal, which then is
    given the last epoch too. `objective` is what the study's intermediate values are of.
    """
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    for number, epoch in journal.left_open().items():
        state, at_ms, reason = "interrupted", now_ms(), None
        trial = trials.get(number)
        if trial is not None:
            if INTERRUPTED not in trial.user_attrs:
                state = ENDED_AS.get(trial.state.name, "interrupted")
            if trial.datetime_complete is not None:
                at_ms = int(trial.datetime_complete.timestamp() * 1000)
            reason = trial.user_attrs.get(REASON)
            curve = _curve(trial, objective)
            newest = max(curve, default=0)
            if newest > epoch:
                journal.epoch(number, newest, {"metrics": curve[newest]}, at_ms)
        journal.end(number, end_of_trial(state, reason, {}), at_ms)


def _curve(trial: FrozenTrial, objective: str) -> dict[int, dict[str, float]]:
    """What the study has of a trial's epochs."""
    if CURVE in trial.user_attrs:
        return {int(epoch): values for epoch, values in trial.user_attrs[CURVE].items()}
    return {epoch: {objective: value} for epoch, value in trial.intermediate_values.items()}
