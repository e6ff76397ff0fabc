"""What a sweep's journal lacks, appended as the study says: ends that a dead driver has left open,
and whole trials of which an older ranksweep has kept no record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.study.curves import looks_of
from search.study.study import (
    ARM,
    ASKED_BY,
    CHOICE,
    CLONE_OF,
    COLLAPSED,
    CURVE,
    DRIVER,
    DUPLICATE_OF,
    ENDED_AS,
    FEATURES,
    INTERRUPTED,
    PLAN_DIGEST,
    REASON,
    REJECTED,
    REPEAT,
    SEED,
    WARM_FROM,
    WARM_START_FROM,
    ended_as,
)
from search.tracking.facts import look_metrics, now_ms, plan_counts
from search.tracking.journal import Journal, end_of_trial
from spaces.errors import RanksweepError
from spaces.plan import Plan


def end_what_was_left_open(journal: Journal, study: optuna.Study, objective: str) -> None:
    """End in the journal what a dead driver has left open: trials as the study says of them.

    A driver may die after it has told the study and before it has told the journal, which then is
    given the last epoch too. `objective` is what the study's intermediate values are of.
    """
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    for number, epoch in journal.left_open().items():
        state, at_ms, reason, collapsed = "interrupted", now_ms(), None, False
        trial = trials.get(number)
        if trial is not None:
            state = ended_as(trial) or "interrupted"
            if trial.datetime_complete is not None:
                at_ms = _ms(trial.datetime_complete)
            reason = trial.user_attrs.get(REASON)
            collapsed = COLLAPSED in trial.user_attrs
            curve = _curve(trial, objective)
            newest = max(curve, default=0)
            if newest > epoch:
                journal.epoch(number, newest, {"metrics": curve[newest]}, at_ms)
        journal.end(number, end_of_trial(state, reason, {}, collapsed=collapsed), at_ms)


def _curve(trial: FrozenTrial, objective: str) -> dict[int, dict[str, float]]:
    """What the study has of a trial's epochs."""
    if CURVE in trial.user_attrs:
        return {int(epoch): values for epoch, values in trial.user_attrs[CURVE].items()}
    return {epoch: {objective: value} for epoch, value in trial.intermediate_values.items()}


def own_trials(study: optuna.Study, driver: str) -> dict[int, FrozenTrial]:
    """Number -> trial, for those that this driver has trained to an end of their own."""
    ended = study.get_trials(deepcopy=False, states=tuple(map(TrialState.__getitem__, ENDED_AS)))
    return {
        trial.number: trial
        for trial in ended
        if CHOICE in trial.user_attrs
        and not trial.user_attrs.keys() & {REJECTED, INTERRUPTED, DUPLICATE_OF}
        and trial.user_attrs.get(DRIVER, driver) == driver
    }


def write_from_study(
    journal: Journal, trial: FrozenTrial, objective: str, plan_of: Callable[..., Plan]
) -> None:
    """Append a trial to the journal anew, as far as the study knows it."""
    number, ended = trial.number, _ms(trial.datetime_complete)
    journal.forget(number)
    keys = (
        *(ARM, PLAN_DIGEST, FEATURES, SEED, REPEAT, WARM_START_FROM),
        *(ASKED_BY, CLONE_OF, WARM_FROM),
    )
    tags = {key: trial.user_attrs[key] for key in keys if key in trial.user_attrs}
    journal.start(number, start_body(trial, tags, plan_of), _ms(trial.datetime_start))
    if looks := looks_of(trial):
        journal.look(number, {"metrics": look_metrics(looks)}, ended)
    for epoch, values in sorted(_curve(trial, objective).items()):
        journal.epoch(number, epoch, {"metrics": values}, ended)
    state = ended_as(trial) or "interrupted"
    reason, collapsed = trial.user_attrs.get(REASON), COLLAPSED in trial.user_attrs
    journal.end(number, end_of_trial(state, reason, {}, collapsed=collapsed), ended)


def write_confirmation_from_study(
    journal: Journal, run: int, trial: FrozenTrial, metric: str, plan_of: Callable[..., Plan]
) -> None:
    """Append a confirmation of a trial to the journal anew: its seed and what it has measured."""
    known = journal.confirmation(run)
    journal.forget(run)
    if known is None:
        return
    number, seed, value = known
    at_ms = now_ms()
    tags = {"seed": seed} | {key: trial.user_attrs[key] for key in (ARM, PLAN_DIGEST)}
    body = {"kind": "confirm", "number": number, **start_body(trial, tags, plan_of)}
    journal.start(run, body, at_ms)
    journal.epoch(run, 1, {"metrics": {f"test_{metric}": value}}, at_ms)
    journal.end(run, end_of_trial("complete", None, {}), at_ms)


def start_body(
    trial: FrozenTrial, tags: Mapping[str, Any], plan_of: Callable[..., Plan]
) -> dict[str, Any]:
    """What the journal says where a trial starts."""
    choice = json.loads(trial.user_attrs[CHOICE])
    try:
        counts = plan_counts(plan_of(choice))
    except RanksweepError:  # its plan cannot be made any more
        counts = {}
    return {"choice": choice, "tags": dict(tags), "metrics": counts}


def _ms(moment: datetime | None) -> int:
    return now_ms() if moment is None else int(moment.timestamp() * 1000)
