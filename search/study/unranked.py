"""Why an arm of a search has nothing to rank: what became of its trials."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import optuna

from search.study.standing import is_handed_out
from search.study.study import ARM, INTERRUPTED, REASON, WARM_FROM, ended_as


def unranked_arms(
    study: optuna.Study, arms: Iterable[str], ranked: Collection[str]
) -> dict[str, str]:
    """Arm -> why it is not among the `ranked`, for the `arms` that are not.

    That is each state that its trials have ended in, with how many and the newest reason.
    """
    trials = study.get_trials(deepcopy=False)
    found: dict[str, str] = {}
    for arm in arms:
        if arm in ranked:
            continue
        told: dict[str, list[str]] = {}
        for trial in trials:
            attributes = trial.user_attrs
            if attributes.get(ARM) != arm or not (
                is_handed_out(trial) or INTERRUPTED in attributes
            ):
                continue
            state = "a warm clone" if WARM_FROM in attributes else ended_as(trial) or "running"
            told.setdefault(state, []).append(attributes.get(REASON) or "")
        parts = [
            f"{len(reasons)} {state}{f': {reasons[-1]}' if reasons[-1] else ''}"
            for state, reasons in told.items()
        ]
        found[arm] = "; ".join(parts) or "none was begun"
    return found
