"""Asynchronous successive halving within each arm, over epochs or over shares of the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.tuning.rungs import Contender, Rungs


@dataclass(frozen=True)
class PastTrial:
    """A trial that an earlier launch, or another driver, has trained: `name` is no other trial's.

    `curve` and `looks` are its values by epoch and by share of the rows.
    """

    name: str
    contender: Contender
    curve: Mapping[int, float]
    looks: Mapping[float, float]
    was_stopped: bool


class ArmAsha(FIFOScheduler):  # type: ignore[misc]
    """Stops a trial that falls behind the others of its own arm at a rung.

    The best of an arm at a rung always goes on: so each arm has a trial that runs to its end,
    unless those that are ahead fail. A trial that fails sets no bar.

    Not compared are repetitions, which all count and not the lucky ones alone, and trials that
    started from the weights of others, which have trained for longer.

    Args:
        metric: what trials report and are compared by.
        rungs: where that is kept; those of a search that goes on begin with what `add_past` is
            given.
        contender: what is known of a Tune trial by its id; None of one that is over.
    """

    def __init__(
        self, metric: str, rungs: Rungs, contender: Callable[[str], Contender | None]
    ) -> None:
        super().__init__()
        self._compared_by, self._rungs, self._contender = metric, rungs, contender

    def add_past(self, trials: Iterable[PastTrial]) -> None:
        """Set the bars by trials that are over."""
        for past in trials:
            levels = [*self._levels(past)]
            for level, value in levels:
                self._rungs.note(past.contender, past.name, level, value)
            if past.was_stopped and levels:
                self._rungs.note_stop(past.contender, past.name, levels[-1][0])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """STOP a trial that falls behind the others of its arm at a rung, else CONTINUE."""
        who = self._contender(trial.trial_id)
        alone = trial.config.get("repeat", 0) or trial.config.get("warm") is not None
        if who is None or alone:
            return str(TrialScheduler.CONTINUE)
        level = self._level(who, result)
        if level is None:
            return str(TrialScheduler.CONTINUE)
        self._rungs.note(who, trial.trial_id, level, float(result[self._compared_by]))
        if self._goes_on(who, trial.trial_id, level):
            return str(TrialScheduler.CONTINUE)
        self._rungs.note_stop(who, trial.trial_id, level)
        return str(TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Forget a trial that has failed."""
        self._rungs.forget(trial.trial_id)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Forget a trial that has ended at no number, which is a failure."""
        if not math.isfinite(result.get(self._compared_by, 0.0)):
            self._rungs.forget(trial.trial_id)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its arguments for `Tuner.restore`, which ranksweep does not use.
        return {}

    def _level(self, who: Contender, result: Mapping[str, Any]) -> float | None:
        """At which level a result can be compared with others; None where it cannot."""
        raise NotImplementedError

    def _goes_on(self, who: Contender, trial: str, level: float) -> bool:
        raise NotImplementedError

    def _levels(self, past: PastTrial) -> Iterable[tuple[float, float]]:
        """The levels at which a past trial was compared, rising, and its values there."""
        raise NotImplementedError


class EpochAsha(ArmAsha):
    """Rungs at epochs `grace_epochs` times the powers of the reduction factor.

    Stage i of S trains steps [floor(i N / S), floor((i + 1) N / S)) of a trial's N, so after epoch
    e of E the last stage has begun to train where e S > (S - 1) E. Before that a result is not
    compared: all it would say of the plan is that part of it does not train yet. A plan that has
    passed rungs by then is compared after the epoch in which its last stage begins, with those of
    its arm that can be compared at that epoch, and from then on at the rungs. Where each stage has
    E epochs of its own, a result is compared by the epochs of the last stage.

    Args:
        epochs: epochs of a full trial, E.
        grace_epochs: no trial is stopped before it has done so many.
        reduction_factor: that of the rungs.
    """

    def __init__(
        self,
        metric: str,
        rungs: Rungs,
        contender: Callable[[str], Contender | None],
        *,
        epochs: int,
        grace_epochs: int,
        reduction_factor: float,
    ) -> None:
        super().__init__(metric, rungs, contender)
        grace = min(grace_epochs, epochs)
        count = int(math.log(epochs / grace) / math.log(reduction_factor)) + 1
        at = {math.ceil(grace * reduction_factor**k) for k in range(count)}
        self._epochs, self._rung_epochs = epochs, {epoch for epoch in at if epoch < epochs}

    def _level(self, who: Contender, result: Mapping[str, Any]) -> float | None:
        if math.isnan(result[self._compared_by]):
            return None  # the next epoch may have a number
        epoch = int(result["epoch"]) - (who.length - 1) * self._epochs
        return epoch if self._first_epoch(who) <= epoch < self._epochs else None

    def _goes_on(self, who: Contender, trial: str, level: float) -> bool:
        late = level == self._first_epoch(who) and level > min(self._rung_epochs, default=level)
        if level not in self._rung_epochs and not late:
            return True
        return self._rungs.goes_on(who, trial, level, joins_late=late)

    def _levels(self, past: PastTrial) -> Iterable[tuple[float, float]]:
        for epoch, value in sorted(past.curve.items()):
            level = self._level(past.contender, {"epoch": epoch, self._compared_by: value})
            if level is not None:
                yield level, value

    def _first_epoch(self, who: Contender) -> int:
        """The first epoch after which a trial can be compared."""
        stages = who.stages if who.length == 1 else 1
        return (stages - 1) * self._epochs // stages + 1


class RowsAsha(ArmAsha):
    """Rungs at the shares of the training rows that cheap looks train on.

    After each look a trial is compared with those of its arm that were trained on the same share;
    within a look, and once it trains on all rows, it is not stopped. A plan of stages has trained
    them all by the end of a look.
    """

    def _level(self, who: Contender, result: Mapping[str, Any]) -> float | None:
        share = result.get("look")
        return None if share is None else float(share)

    def _goes_on(self, who: Contender, trial: str, level: float) -> bool:
        return self._rungs.goes_on(who, trial, level)

    def _levels(self, past: PastTrial) -> Iterable[tuple[float, float]]:
        return past.looks.items()
