"""The trials of a study and what was asked of it, as rows for a user."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.study.curves import looks_of
from search.study.requests import answers_of, requests_of
from search.study.study import (
    ARM,
    ASKED_BY,
    CHOICE,
    CLONE_OF,
    COLLAPSED,
    CURVE,
    DUPLICATE_OF,
    METHOD,
    REASON,
    REJECTED,
    REPEAT,
    REQUEST,
    RUN_ID,
    TRAINABLE_PARAMS,
    WARM_FROM,
    WARM_START_FROM,
    choice_of,
    ended_as,
)


@dataclass(frozen=True)
class TrialRow:
    """A trial of the study. `epochs` are those that it has done, `value` is its newest; `looks` are
    its values after training on shares of the rows.

    `asked` says where it comes from: the sweep, an earlier one, or a user. `reason` says why it
    has ended before its last epoch, or was answered from another; None where there is none.
    """

    number: int
    arm: str
    state: str
    epochs: int
    value: float | None
    trainable_params: int
    asked: str
    reason: str | None
    run_id: str | None
    choice: dict[str, Any]
    looks: dict[float, float]
    collapsed: bool = False
    """Whether its newest epoch has predicted one class alone."""


@dataclass(frozen=True)
class RequestRow:
    """A request that no trial has been begun for; `state` is refused, accepted or waits."""

    asked: str
    by: str
    state: str
    reason: str


def trial_rows(study: optuna.Study) -> list[TrialRow]:
    """The trials of a study, by number; those that were never trained here are left out."""
    trials = study.get_trials(deepcopy=False)
    return [
        _row(trial)
        for trial in trials
        if CHOICE in trial.user_attrs and REJECTED not in trial.user_attrs
    ]


def request_rows(study: optuna.Study) -> list[RequestRow]:
    """What was asked for and has become no trial, the oldest first."""
    attributes = study.user_attrs
    answers = answers_of(attributes)
    begun = {
        trial.user_attrs[REQUEST]
        for trial in study.get_trials(deepcopy=False)
        if REQUEST in trial.user_attrs and ended_as(trial) != "interrupted"
    }
    rows = []
    for request in requests_of(attributes):
        said = answers.get(request.id)
        done = request.kind == "stop" and said is not None and said.accepted
        if request.id not in begun and not done:
            state = "waits" if said is None else "accepted" if said.accepted else "refused"
            reason = "" if said is None else said.reason
            rows.append(RequestRow(request.in_words, request.by, state, reason))
    return rows


def _row(trial: FrozenTrial) -> TrialRow:
    attributes = trial.user_attrs
    curve = trial.intermediate_values
    # Optuna takes no curve of a trial with two objectives; the study has it once it is over.
    last = max((*curve, *map(int, attributes.get(CURVE, {}))), default=0)
    value = trial.values[0] if trial.state == TrialState.COMPLETE else curve.get(last)
    return TrialRow(
        trial.number,
        attributes.get(ARM, attributes[METHOD]),
        "answered" if DUPLICATE_OF in attributes else ended_as(trial) or "running",
        last,
        float(value) if value is not None and math.isfinite(value) else None,
        int(attributes[TRAINABLE_PARAMS]),
        _asked(attributes),
        _reason(attributes),
        attributes.get(RUN_ID),
        choice_of(trial).as_dict(),
        looks_of(trial),
        COLLAPSED in attributes,
    )


def _reason(attributes: Mapping[str, Any]) -> str | None:
    """Why a trial is not complete, or was not trained."""
    if DUPLICATE_OF in attributes:
        return f"the same training as trial {attributes[DUPLICATE_OF]}"
    reason = attributes.get(REASON)
    return None if reason is None else str(reason)


def _asked(attributes: Mapping[str, Any]) -> str:
    """Who has asked for a trial, for a user."""
    if WARM_FROM in attributes:
        return f"warm clone of {attributes[WARM_FROM]}"
    if CLONE_OF in attributes:
        return f"clone of {attributes[CLONE_OF]}"
    if ASKED_BY in attributes:
        return str(attributes[ASKED_BY])
    if REPEAT in attributes:
        return f"repetition {attributes[REPEAT]}"
    if WARM_START_FROM in attributes:
        return "an earlier sweep"
    return "the sweep"
