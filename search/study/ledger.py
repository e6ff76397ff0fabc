"""What is written into a study of the trials that this driver begins, answers and ends.

The state of every trial says what became of it:

=========== ============================================================================
state       meaning
=========== ============================================================================
COMPLETE    trained for all its epochs, with finite values: those of its last epoch
            or answered from such a trial, whose number the attribute
            ``ranksweep_duplicate_of`` holds: another choice, but the same training
PRUNED      stopped early by the scheduler; its curve is kept, and what it was after each
            look at a share of the training rows (``looks``)
FAIL        failed, or ended at a NaN or an infinity, or was cut off by the user or the
            time budget (attribute ``ranksweep_interrupted``), or ended by the user for good
            (``ranksweep_stopped``); attribute ``reason`` says why.
            Or another driver was faster (``ranksweep_rejected``)
=========== ============================================================================
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.config.sweep import SearchSettings
from search.study.private_optuna import add_running
from search.study.shared import SharedStudy
from search.study.standing import is_handed_out, is_of_the_search, is_same, training_of
from search.study.study import (
    ARM,
    ASKED_BY,
    CHOICE,
    CLONE_OF,
    COLLAPSED,
    CURVE,
    DUPLICATE_OF,
    FEATURES,
    INTERRUPTED,
    LINK,
    LOOKS,
    METHOD,
    PLAN_DIGEST,
    REASON,
    REJECTED,
    REPEAT,
    REQUEST,
    RUN_ID,
    SEED,
    STAGES,
    STOPPED,
    TRAINABLE_PARAMS,
    TRAINING,
    WARM_FROM,
    WARM_START_FROM,
    choice_text,
    is_older,
    over_the_same_space,
)
from search.study.trial import Asked, EndedTrial, OpenTrial, Proposal
from search.surrogate.observation import recorded_features
from search.wording import percent
from spaces.profile import Profile
from trainables.tasks.collapse import PREDICTED_CLASSES, is_collapsed
from trainables.training.settings import TrainSettings

logger = logging.getLogger(__name__)

_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
_MARKS = {"cancelled": INTERRUPTED, "stopped": STOPPED}
"""State of our own -> the attribute that tells it from others that FAIL."""


class Ledger:
    """Writes the trials of one driver into its study.

    Args:
        study: the study, made by `open_study`.
        search, train: what the sweep says of its trials.
        origins: text of a choice that others have found -> the MLflow run that it is from.
        shared: this driver's part, where others have the same study.
        profile: that of the plans, whose features are written down.
    """

    def __init__(
        self,
        study: optuna.Study,
        search: SearchSettings,
        train: TrainSettings,
        origins: Mapping[str, str],
        shared: SharedStudy | None,
        profile: Profile | None = None,
    ) -> None:
        self._study, self._search, self._train = study, search, train
        self._origins, self._shared, self._profile = origins, shared, profile
        self._older = is_older(study)
        self._open: dict[int, OpenTrial] = {}

    def begin(self, proposal: Proposal) -> OpenTrial | None:
        """A running trial of what is proposed; None where another driver was faster.

        The storage has it whole or not at all.

        Raises:
            ConfigError: the study was made over another space.
        """
        frozen = self._frozen(proposal, TrialState.RUNNING)
        with over_the_same_space():
            trial = add_running(self._study, frozen)
        if self._shared is not None:
            self._shared.beat_for(trial)
            if self._gives_back(trial):
                return None
        found = OpenTrial(
            trial,
            proposal.choice,
            proposal.plan,
            proposal.seed,
            proposal.repeat,
            proposal.asked,
            frozen.user_attrs[FEATURES],
        )
        self._open[found.number] = found
        return found

    def answer(self, proposal: Proposal, answer: FrozenTrial) -> None:
        """A complete trial of what is proposed, with the values of the one that is the same."""
        known = {"values": answer.values, "intermediate_values": answer.intermediate_values}
        self._study.add_trial(self._frozen(proposal, TrialState.COMPLETE, **known))

    @property
    def has_open(self) -> bool:
        """Whether a trial of this driver has not ended."""
        return bool(self._open)

    def record(self, found: OpenTrial, result: Mapping[str, Any]) -> None:
        """Keep an epoch's values; Optuna takes them as intermediate values of one objective.

        What a trial is after training on a share of the rows is none of these.
        """
        if "look" in result:
            found.looks[float(result["look"])] = float(result[self._search.metric])
            looks = {str(share): value for share, value in found.looks.items()}
            with contextlib.suppress(UpdateFinishedTrialError):
                found.trial.set_user_attr(LOOKS, looks)
            return
        epoch = int(result.get("epoch", 0))
        if epoch < 1 or epoch in found.curve:
            return
        objectives = self._search.objectives
        names = {self._search.metric, "dev_loss", "train_loss", PREDICTED_CLASSES, *objectives}
        names.discard(TRAINABLE_PARAMS)
        found.curve[epoch] = {name: float(result[name]) for name in names if name in result}
        if len(objectives) == 1:
            with contextlib.suppress(UpdateFinishedTrialError):  # `end` says what became of it
                found.trial.report(_value(found, objectives[0], result), epoch)

    def end(self, found: OpenTrial, ended: EndedTrial | None = None) -> EndedTrial:
        """Tell the study how a trial ended, by default by the epochs it has done.

        Returns what it ended as: cancelled, where another driver has it trained again.
        """
        ended = ended or self._judged(found)
        trial = found.trial
        self._open.pop(found.number, None)
        try:
            if ended.reason is not None:
                trial.set_user_attr(REASON, ended.reason[:2000])
            if found.curve and is_collapsed(found.curve[max(found.curve)]):
                trial.set_user_attr(COLLAPSED, True)
            if ended.state in _MARKS:
                trial.set_user_attr(_MARKS[ended.state], True)
            if len(self._search.objectives) > 1:
                # Optuna takes no intermediate values where there are several objectives.
                curve = {str(epoch): values for epoch, values in sorted(found.curve.items())}
                trial.set_user_attr(CURVE, curve)
            self._tell(trial, _STATES.get(ended.state, TrialState.FAIL), ended.values)
        except UpdateFinishedTrialError:
            reason = "another driver took it for left behind and has it trained again"
            logger.warning("trial %d: %s", found.number, reason)
            return replace(ended, state="cancelled", values=None, reason=reason)
        return ended

    def set_run_id(self, number: int, run_id: str, link: str | None = None) -> None:
        """Write down the tracking run of an open trial, and a link to it. May be called from
        another thread.

        Raises:
            KeyError: no trial of this number is open.
        """
        trial = self._open[number].trial
        trial.set_user_attr(RUN_ID, run_id)
        if link is not None:
            trial.set_user_attr(LINK, link)

    def tags_of(self, number: int) -> dict[str, Any]:
        """What a record of an open trial should say beside its choice: seed, repetition, origin,
        the features of its plan, and who has asked for it."""
        found = self._open.get(number)
        if found is None:
            return {}
        origin = self._origins.get(choice_text(found.choice))
        return _known(
            {
                SEED: found.seed,
                REPEAT: found.repeat or None,
                WARM_START_FROM: origin,
                FEATURES: found.features or None,
                **_of_request(found.asked),
            }
        )

    def _frozen(self, proposal: Proposal, state: TrialState, **more: Any) -> FrozenTrial:
        choice, params = proposal.choice, proposal.plan.trainable_params
        training = training_of(choice, proposal.plan)
        asked = proposal.asked
        if asked is not None and asked.warm is not None:  # the same as no other
            training = f"{training}:warm:{asked.request}"
        attributes = {
            CHOICE: choice_text(choice, self._older),
            METHOD: choice.method,
            ARM: proposal.arm,
            TRAINABLE_PARAMS: params,
            FEATURES: recorded_features(proposal.plan, choice.learning_rate, self._profile),
            PLAN_DIGEST: proposal.plan.digest,
            STAGES: len(proposal.plan.stages),
            TRAINING: training,
            SEED: proposal.seed,
            REPEAT: proposal.repeat or None,
            WARM_START_FROM: self._origins.get(choice_text(choice)),
            DUPLICATE_OF: proposal.answer.number if proposal.answer else None,
            REQUEST: None if asked is None else asked.request,
            **_of_request(asked),
        }
        limit = self._search.max_params
        return create_trial(
            state=state,
            params=dict(proposal.params),
            distributions=dict(proposal.distributions),
            user_attrs=_known(attributes),
            constraints=None if limit is None else {TRAINABLE_PARAMS: float(params - limit)},
            **more,
        )

    def _gives_back(self, trial: optuna.trial.Trial) -> bool:
        """Whether a trial that was written down is given up: see search/study/shared.py."""
        *ahead, own = self._study.get_trials(deepcopy=False)[: trial.number + 1]
        counted = [each for each in ahead if is_handed_out(each)]
        same = [each for each in counted if is_same(each, own)]
        are_out = sum(map(is_of_the_search, counted)) >= self._search.trials
        if not same and not (are_out and is_of_the_search(own)):
            return False
        why = f"trial {same[0].number} is the same" if same else "search.trials are out"
        trial.set_user_attr(REJECTED, f"another driver was faster: {why}")
        self._tell(trial, TrialState.FAIL)
        return True

    def _judged(self, found: OpenTrial) -> EndedTrial:
        """What the epochs of a trial that is over make of it."""
        epochs = self._train.epochs * found.plan.length
        objectives = self._search.objectives
        if not found.curve and found.looks:
            share = percent(max(found.looks))
            return found.ended("pruned", f"stopped after a look at {share} of the rows")
        if not found.curve:
            return found.ended("failed", "stopped before its first epoch ended")
        last = max(found.curve)
        if last < epochs:
            return found.ended("pruned", f"stopped after epoch {last} of {epochs}")
        values = tuple(_value(found, name, found.curve[last]) for name in objectives)
        for name, value in zip(objectives, values, strict=True):
            if not math.isfinite(value):
                return found.ended("failed", f"{name} is {value} after epoch {last}")
        return found.ended("complete", values=values)

    def _tell(
        self, trial: optuna.trial.Trial, state: TrialState, values: tuple[float, ...] | None = None
    ) -> None:
        if self._shared is not None:
            self._shared.beat_no_more_for(trial)
        if self._study.get_trials(deepcopy=False)[trial.number].state.is_finished():
            raise UpdateFinishedTrialError(f"trial {trial.number} has ended")
        self._study.tell(trial, values, state)


def _value(found: OpenTrial, objective: str, values: Mapping[str, Any]) -> float:
    if objective == TRAINABLE_PARAMS:
        return float(found.plan.trainable_params)
    return float(values.get(objective, math.nan))


def _of_request(asked: Asked | None) -> dict[str, Any]:
    """What is said of a trial that a user has asked for."""
    if asked is None:
        return {}
    return {ASKED_BY: asked.by, CLONE_OF: asked.clone_of, WARM_FROM: asked.warm_from}


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if value is not None}
