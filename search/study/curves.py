"""What a trial of a study was measured to be on its way: after each epoch and each cheap look."""

from __future__ import annotations

from optuna.trial import FrozenTrial

from search.study.study import CURVE, LOOKS


def curve_of(trial: FrozenTrial, metric: str) -> dict[int, float]:
    """Epoch (from 1) -> value, of the training on all rows."""
    if CURVE in trial.user_attrs:
        told = trial.user_attrs[CURVE].items()
        return {int(epoch): values[metric] for epoch, values in told if metric in values}
    return dict(trial.intermediate_values)


def looks_of(trial: FrozenTrial) -> dict[float, float]:
    """Share of the training rows -> value after training on it, rising, without that of all rows.

    A trial that is complete has that as its value.
    """
    looks = trial.user_attrs.get(LOOKS, {})
    return dict(sorted((float(share), float(value)) for share, value in looks.items()))
