"""Asynchronous successive halving that knows of stages.

`_trial_info`, `_rungs`, `_metric` and `_metric_op` are Ray's own: of all that search takes of Ray
nothing else is private, so an upgrade has to look here alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from search.objective import Objective


class StagedAsha(AsyncHyperBandScheduler):  # type: ignore[misc]
    """Asynchronous successive halving that lets a plan of several stages reach its last one.

    Stage i of S trains steps [floor(i N / S), floor((i + 1) N / S)) of a trial's N, so after epoch
    e of E the last stage has begun to train where e S > (S - 1) E. Before that a result is not
    compared: all it would say of the plan is that part of it does not train yet. Where each stage
    has E epochs of its own, a result is compared by the epochs of the last stage.

    Args:
        stages: how many stages the plan of a Tune trial has, by the trial's id.
        length: how many times `epochs` a Tune trial has, by its id: 1, or once for each stage.
        epochs: epochs of a full trial.
        grace_epochs: no trial is stopped before it has done so many.
        reduction_factor: one in so many trials goes on from one rung to the next.
        objective: the reported metric, and what of it is better.
    """

    def __init__(
        self,
        *,
        stages: Callable[[str], int],
        length: Callable[[str], int] = lambda trial_id: 1,
        epochs: int,
        grace_epochs: int,
        reduction_factor: float,
        objective: Objective,
    ) -> None:
        grace = min(grace_epochs, epochs)
        super().__init__(
            time_attr="epoch",
            metric=objective.metric,
            mode=objective.mode,
            max_t=epochs,
            grace_period=grace,
            reduction_factor=reduction_factor,
            stop_last_trials=False,
        )
        self._stages, self._length = stages, length
        self._epochs = epochs
        count = int(math.log(epochs / grace) / math.log(reduction_factor)) + 1
        self._rung_epochs = {math.ceil(grace * reduction_factor**k) for k in range(count)}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """STOP a trial that falls behind the others at a rung, else CONTINUE."""
        length = self._length(trial.trial_id)
        epoch = int(result["epoch"]) - (length - 1) * self._epochs
        if epoch < 1:
            return str(TrialScheduler.CONTINUE)  # a full stage before the last
        if epoch >= self._epochs:
            return str(TrialScheduler.CONTINUE)  # the function returns by itself
        if trial.config.get("repeat", 0):
            return str(TrialScheduler.CONTINUE)  # all repetitions count, not the lucky ones alone
        if trial.config.get("warm") is not None:
            return str(TrialScheduler.CONTINUE)  # it has trained for longer than the others
        result = {**result, "epoch": epoch}
        stages = self._stages(trial.trial_id) if length == 1 else 1
        if stages == 1 or (self._in_last_stage(epoch, stages) and epoch in self._rung_epochs):
            return str(super().on_trial_result(tune_controller, trial, result))
        if self._in_last_stage(epoch, stages) and self._behind_last_rung(trial, result):
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)

    def _in_last_stage(self, epoch: int, stages: int) -> bool:
        return epoch * stages > (stages - 1) * self._epochs

    def _behind_last_rung(self, trial: Trial, result: Mapping[str, Any]) -> bool:
        """Whether a result is below what let others pass the last rung of no more epochs.

        Ray's rungs take the first result that reaches them; one that was held back until its last
        stage is only compared, as it must not raise the bar of a rung of fewer epochs.
        """
        bracket = self._trial_info[trial.trial_id]
        for milestone, recorded in bracket._rungs:  # from the last to the first
            if milestone <= result["epoch"]:
                cutoff = bracket.cutoff(recorded)
                value = self._metric_op * result[self._metric]
                return cutoff is not None and bool(value < cutoff)
        return False

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Nothing: a last result must not enter a rung of fewer epochs."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its arguments for `Tuner.restore`, which ranksweep does not use.
        return {}
