"""Optuna as Ray Tune's searcher: asks a study for choices and tells it what became of each.

Tune's own `OptunaSearch` calls a trial COMPLETE that a scheduler has stopped, forgets intermediate
values where there are two objectives, and only logs a NaN. Here the state of every Optuna trial is
that of the Tune trial it stands for (search/study/ledger.py), and what is handed out next is
decided in search/study/proposals.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray.tune.search import Searcher

from search.study.curves import curve_of, looks_of
from search.study.proposals import Proposals
from search.study.study import ARM, REPEAT, STAGES, TRAINABLE_PARAMS, WARM_FROM, choice_of
from search.study.trial import EndedTrial, EndState, OpenTrial
from search.tuning.asha import PastTrial
from search.tuning.rungs import Contender
from search.tuning.trial import job_name
from spaces.choice import Choice


class StudySearcher(Searcher):  # type: ignore[misc]
    """Hands out choices of a study to Ray Tune, one per trial, and tells the study how they ended.

    Tune calls `suggest` when it can start a trial, `on_trial_result` after each report that does
    not stop it, and `on_trial_complete` when it ends. A suggestion is ``{"choice": dict, "number":
    n, "seed": s, "repeat": k}`` with Optuna's number of the trial, the seed to train with, and 0 or
    which repetition of the choice it is; and ``"warm"``, the file of weights to start from, for a
    trial that does. With cheap looks ``"rows"`` has the shares of the training rows, of a trial
    that is neither.

    Args:
        proposals: who hands out the trials of the study.
        waits: whether to wait for what is being trained, where that decides on what is next.
    """

    def __init__(self, proposals: Proposals, waits: Callable[[], bool] = lambda: True) -> None:
        super().__init__(metric=proposals.search.metric, mode=proposals.search.mode)
        self.proposals, self._waits = proposals, waits
        fidelity = proposals.search.fidelity
        self._shares = (1.0,) if fidelity is None else fidelity.rows
        self._open: dict[str, OpenTrial] = {}
        self._ended: dict[str, EndedTrial] = {}
        #: Text of the error of a failed Tune trial; Tune itself does not hand it to a searcher.
        self.read_error: Callable[[str], str | None] = lambda trial_id: None

    # -- what Tune calls ------------------------------------------------------------------------

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next choice; None to be asked again, `Searcher.FINISHED` when there is no more."""
        begun = self.proposals.begin_next()
        if begun == "later" and self._waits():
            return None
        if not isinstance(begun, OpenTrial):
            return str(Searcher.FINISHED)
        self._open[trial_id] = begun
        warm = begun.asked.warm if begun.asked is not None else None
        return {
            "choice": begun.choice.as_dict(),
            "number": begun.number,
            "seed": begun.seed,
            "repeat": begun.repeat,
            **({} if warm is None else {"warm": str(warm)}),
            **({"rows": [*self._shares]} if self._looks_at(begun) else {}),
        }

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Keep an epoch's values."""
        if trial_id in self._open:
            self.proposals.ledger.record(self._open[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study how the trial ended, by the epochs it has done."""
        found = self._open.get(trial_id)
        if found is None:
            return
        if error:
            reason = self.read_error(trial_id) or "the trial failed"
            self._end(trial_id, found.ended("failed", reason))
            return
        if result:
            self.proposals.ledger.record(found, result)
        self._end(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Write which Optuna trial each open Tune trial stands for; the study has its storage."""
        numbers = {trial_id: found.number for trial_id, found in self._open.items()}
        Path(checkpoint_path).write_text(json.dumps(numbers), encoding="utf-8")

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its arguments for `Tuner.restore`. ranksweep resumes from the study instead;
        # its URL may hold a password, and a profile is large: neither belongs in Tune's files.
        return {}

    # -- what the driver calls ------------------------------------------------------------------

    @property
    def handed(self) -> int:
        """Trials handed out so far, those of earlier runs and of other drivers included."""
        return self.proposals.standing.handed

    @property
    def wanted(self) -> int:
        """Trials to hand out in all."""
        return self.proposals.wanted

    @property
    def counts(self) -> dict[str, int]:
        """Trials handed out per arm: per method where no keys make arms."""
        return dict(self.proposals.standing.counts)

    @property
    def shortfall(self) -> str | None:
        """Why methods take no further part, which may end a search early; None if all do."""
        return self.proposals.shortfall

    @property
    def enough(self) -> str | None:
        """Why `search.stop_when` has ended the search; None while it has not."""
        return self.proposals.enough

    def arm_of(self, choice: Choice) -> str:
        """The name of the arm that a choice belongs to: its method where no keys make arms."""
        return self.proposals.arm_of(choice)

    def tags_of(self, number: int) -> dict[str, Any]:
        """What a record of an open trial should say beside its choice: seed, repetition, origin,
        the features of its plan."""
        return self.proposals.ledger.tags_of(number)

    def set_run_id(self, number: int, run_id: str, link: str | None = None) -> None:
        """Write down the tracking run of an open trial, and a link to it. May be called from
        another thread.

        Raises:
            KeyError: no trial of this number is open.
        """
        self.proposals.ledger.set_run_id(number, run_id, link)

    def job_names(self, number: int) -> list[str]:
        """The jobs that a trial may come to have: one for each share of the rows."""
        return [job_name(number, rows=share) for share in self._shares]

    @property
    def open_ids(self) -> tuple[str, ...]:
        """Tune's ids of the trials that have not ended."""
        return tuple(self._open)

    def open_trial(self, trial_id: str) -> OpenTrial | None:
        """The open trial of this Tune id."""
        return self._open.get(trial_id)

    def ended_trial(self, trial_id: str) -> EndedTrial | None:
        """How the trial of this Tune id ended; None while it is open."""
        return self._ended.get(trial_id)

    @property
    def ended(self) -> tuple[EndedTrial, ...]:
        """The trials of this run that have ended, by number."""
        return tuple(sorted(self._ended.values(), key=lambda trial: trial.number))

    def contender(self, trial_id: str) -> Contender | None:
        """What a comparison with others needs to know of an open trial."""
        found = self._open.get(trial_id)
        if found is None:
            return None
        plan = found.plan
        stages = max(1, len(plan.stages))
        return Contender(self.arm_of(found.choice), plan.trainable_params, stages, plan.length)

    def past_trials(self) -> Iterator[PastTrial]:
        """The trials of the study that have run to an end, or to where they were stopped.

        Those of an older ranksweep, which has not written down their stages, are left out.
        """
        proposals = self.proposals
        for trial in proposals.standing.trials:
            is_over = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            attributes = trial.user_attrs
            if not is_over or attributes.keys() & {REPEAT, WARM_FROM} or STAGES not in attributes:
                continue
            yield PastTrial(
                f"of the study: {trial.number}",
                Contender(
                    attributes[ARM],
                    attributes[TRAINABLE_PARAMS],
                    max(1, attributes[STAGES]),
                    choice_of(trial).length,
                ),
                curve_of(trial, proposals.search.metric),
                looks_of(trial),
                trial.state == TrialState.PRUNED,
            )

    def id_of(self, number: int | None) -> str | None:
        """Tune's id of the open trial with this number; None where none is open."""
        return next((each for each, open_ in self._open.items() if open_.number == number), None)

    def cancel(
        self, trial_id: str, reason: str, state: EndState = "cancelled"
    ) -> EndedTrial | None:
        """Tell FAIL an open trial that was cut off from outside; a resumed sweep redoes it, unless
        it was stopped."""
        found = self._open.get(trial_id)
        if found is None:
            return None
        ended = found.ended(state, reason)
        self._end(trial_id, ended)
        return ended

    def _looks_at(self, begun: OpenTrial) -> bool:
        """Whether a trial is looked at on its way; one that no other is compared with is not."""
        is_alone = begun.repeat or (begun.asked is not None and begun.asked.warm is not None)
        return len(self._shares) > 1 and not is_alone

    def _end(self, trial_id: str, ended: EndedTrial | None = None) -> None:
        self._ended[trial_id] = self.proposals.ledger.end(self._open.pop(trial_id), ended)
