"""The champion of a task on a base, promoted where it beats the present one beyond the noise.

MLflow has no conditional write. The alias is therefore read again when the new version is whole,
and the comparison made again where it has moved since; it is set last of all, so that whatever
fails leaves the champion as it was. Of two promotions within the moment between that look and the
writing of the alias the later one stays, though the other may be better: promote that again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from search.queries.champions import base_name, model_name
from search.queries.rivals import Rivalry, rivalry, tested, told_of_rows
from search.queries.trial_run import TrialRun, find_trial
from search.queries.winner import winner
from search.tracking.facts import choice_tag, now_ms
from search.tracking.lineage import DataOrigin, log_data
from search.tracking.registry import Registry, Version
from search.tracking.runs import RecordedRuns
from search.tracking.served_model import MODEL
from search.tracking.tracker import Tracker
from search.trained.champion_model import mlflow_model
from search.trained.its_task import task_settings
from spaces.errors import ConfigError, RanksweepError, UsageError
from trainables.tasks.settings import DataSettings
from trainables.tasks.suite import member_settings

_LOOKS = 3
"""How often another promotion may come between before this one gives up."""


@dataclass(frozen=True)
class Promotion:
    """What came of asking whether a run is to be the champion of its task and base.

    `reason` is one line for people, of a refusal too. `difference` is the run's mean on test minus
    the champion's, in the direction that is better, with the 95 % interval [`low`, `high`]; None
    where there was no champion, or nothing to compare by.
    """

    promoted: bool
    reason: str
    model: str
    """Name of the registered model, `<task>-<base name>`."""
    version: int | None
    """The version that is champion now; None where there is none."""
    run_id: str
    metric: str
    value: float | None
    """Mean over seeds on test, where it was confirmed."""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    is_champion: bool = False
    """Whether the run is champion now, promoted just now or before."""
    before: int | None = None
    """The version that was champion before, where it was promoted."""


@dataclass(frozen=True)
class _Verdict:
    """Whether a run is to be champion in the place of `present`, and why."""

    present: Version | None
    wins: bool
    reason: str
    rivalry: Rivalry


def promote(
    tracking_uri: str,
    run_id: str,
    *,
    even_if_not_better: bool = False,
    base_uri: str | None = None,
    own_code: bool = False,
) -> Promotion:
    """Register a run's model, and make it the champion where it is better beyond the noise.

    The run is a trial, of which the confirmation that is best on dev becomes the model, or a
    confirmation. A run that is champion already stays so, and nothing is done. What is not better,
    or cannot be compared, is refused, and nothing is registered; `even_if_not_better` promotes it
    all the same. `base_uri` is where its base is now, and `own_code` says that code of the task's
    own, of a kind or a metric, may be imported.

    Raises:
        ConfigError: there is no such run, it is no trial's, the model's name is taken, or the
            artifacts of its experiment are not where MLflow has noted them.
        UsageError: the run is not complete, has kept no weights or cannot be merged; BaseModelError
            where its base cannot be had.
        TrackingError: MLflow cannot be read or written; the champion is what it was.
    """
    asked = find_trial(tracking_uri, run_id)
    run = asked.confirmed_best()
    _check(run)
    base = _base_name(asked)
    name = model_name(asked.facts.task, base)
    registry = Registry(tracking_uri)
    _check_name(registry, name, asked.facts.task, base)
    verdict = _judged(registry, name, asked, even_if_not_better)
    if not verdict.wins:
        return _told(verdict, name, asked, promoted=False)
    run.trained(own_code=own_code)  # raises where no weights are kept, before anything is written
    about = {"task": asked.facts.task, "base_name": base, "base_uri": asked.facts.base_uri}
    version = _registered(registry, name, about, run, asked, base_uri, own_code)
    for _ in range(_LOOKS):
        now = registry.champion(name)
        if _number(now) == _number(verdict.present):
            return _crowned(registry, version, verdict, name, asked)
        verdict = _judged(registry, name, asked, even_if_not_better)
        if not verdict.wins:
            return _told(verdict, name, asked, promoted=False)
    raise RanksweepError(
        f"{run_id}: the champion of {name} has changed {_LOOKS} times in the meantime; try again"
    )


def promote_best_of(
    tracking_uri: str,
    sweep: str,
    *,
    even_if_not_better: bool = False,
    base_uri: str | None = None,
    own_code: bool = False,
) -> Promotion:
    """`promote` of the best confirmed choice of a sweep, which is its name or its run id.

    It is the best on dev over its seeds, for test is there to judge it. Raises RanksweepError where
    there is no such sweep, or no trial of it is complete.
    """
    run_id = winner(RecordedRuns(tracking_uri), sweep)
    return promote(
        tracking_uri,
        run_id,
        even_if_not_better=even_if_not_better,
        base_uri=base_uri,
        own_code=own_code,
    )


# -- whether ---------------------------------------------------------------------------------------


def _check(run: TrialRun) -> None:
    """Raise UsageError for a run that is not complete, or does not say what it is of."""
    facts = run.facts
    if facts.status != "complete":
        raise UsageError(
            f"{run.run_id}: is {facts.status or 'half written'}; promote a complete trial "
            "(`ranksweep best` shows them)"
        )
    if not facts.task or not facts.base_uri:
        raise UsageError(
            f"{run.run_id}: does not say of which task and base it is; promote a trial of this "
            "version of ranksweep"
        )


def _base_name(asked: TrialRun) -> str:
    """What its base is called: as the run of its sweep says, else by its URI."""
    parent = asked.facts.parent
    sweep = None if parent is None else asked.recorded.find(parent)
    return base_name(asked.facts.base_uri, None if sweep is None else sweep.base_name)


def _check_name(registry: Registry, name: str, task: str, base: str) -> None:
    """Raise ConfigError where the model of this name is another task's or not of ranksweep."""
    found = registry.model(name)
    if found is None:
        return
    theirs = found.tags.get("task"), found.tags.get("base_name")
    if theirs == (task, base):
        return
    whose = "not registered by ranksweep" if theirs[0] is None else f"of the task {theirs[0]!r}"
    raise ConfigError(
        f"RUN_ID: MLflow has a model {name!r} already, which is {whose}; rename it there "
        f"(MlflowClient().rename_registered_model), or launch the sweep with another task.name"
    )


def _judged(registry: Registry, name: str, asked: TrialRun, even_if_not_better: bool) -> _Verdict:
    present = registry.champion(name)
    if present is None:
        measured = tested(asked)
        how = "" if measured.values else ", though it was never measured on test"
        return _Verdict(None, True, f"there was no champion of {name} yet{how}", Rivalry())
    who = f"version {present.number}"
    if _is_of(present, asked):
        return _Verdict(present, False, f"it is the champion of {name} already, {who}", Rivalry())
    found = _against(present, asked)
    told = _comparison_told(found, asked, who)
    if found.is_won:
        return _Verdict(present, True, f"it is better than {who} beyond the noise: {told}", found)
    lost = (
        f"it cannot be compared with {who}: {found.why_none}"
        if found.why_none
        else f"it is not better than {who} beyond the noise: {told}"
    )
    if even_if_not_better:
        return _Verdict(present, True, f"it was wanted even if not better; {lost}", found)
    return _Verdict(present, False, f"{lost}; --even-if-not-better promotes it all the same", found)


def _is_of(version: Version, asked: TrialRun) -> bool:
    """Whether a version is the model of the same choice of the same sweep."""
    of_run = version.tags.get("sweep_run"), version.tags.get("number")
    return version.run_id == asked.run_id or of_run == (
        asked.facts.parent,
        str(asked.facts.number),
    )


def _against(present: Version, asked: TrialRun) -> Rivalry:
    facts = None if not present.run_id else asked.recorded.find(present.run_id)
    if facts is None or facts.kind not in ("trial", "confirm"):
        return Rivalry(why_none="its run is no trial that MLflow still has")
    return rivalry(asked, TrialRun(facts, frozenset(), asked.recorded))


def _comparison_told(found: Rivalry, asked: TrialRun, who: str) -> str:
    if found.gap is None or found.low is None or found.high is None:
        return ""
    metric = asked.objective.metric
    return f"{metric} {found.gap:+.4f} on test (95% from {found.low:+.4f} to {found.high:+.4f})"


def _number(version: Version | None) -> int | None:
    return None if version is None else version.number


# -- how -------------------------------------------------------------------------------------------


def _registered(
    registry: Registry,
    name: str,
    about: dict[str, str],
    run: TrialRun,
    asked: TrialRun,
    base_uri: str | None,
    own_code: bool,
) -> Version:
    """The version that is the run's model, whole, and champion of nothing yet. `about` says of
    which task and base it is."""
    experiment = run.recorded.experiments().get(run.facts.experiment_id)
    if experiment is None:
        raise UsageError(
            f"{run.run_id}: its experiment is deleted in MLflow; restore it "
            f"(mlflow experiments restore -x {run.facts.experiment_id})"
        )
    tracker = Tracker(run.recorded.uri, experiment)  # raises where artifacts were moved away
    for version in registry.versions(name):
        if version.run_id == run.run_id:  # of a promotion that did not come to its end, or before
            return version
    with mlflow_model(run, asked, base_uri, own_code) as folder:
        source = tracker.log_folder(run.run_id, folder, MODEL)
    log_data(tracker, run.run_id, asked.facts.task, _origins(run, own_code))
    facts = asked.facts
    registry.register(name, about)
    title = f"{facts.task} by {run.method}, of sweep {facts.sweep}"
    return registry.add_version(name, source, run.run_id, {**about, **_about(asked)}, title)


def _about(asked: TrialRun) -> dict[str, Any]:
    """What a version says of its trial, so that the registry alone tells who is champion."""
    facts, measured = asked.facts, tested(asked)
    trial = asked.run_id if facts.kind == "trial" else _confirmed_by(asked)
    return {
        "base": facts.base,
        "sweep": facts.sweep,
        "sweep_run": facts.parent,
        "number": facts.number,
        "trial_run": trial,
        "method": facts.method,
        "choice": choice_tag(facts.choice or {}),
        "trainable_params": int(facts.metrics.get("trainable_params", 0)),
        "metric": measured.objective.metric,
        "mode": measured.objective.mode,
        "values": {str(seed): value for seed, value in measured.values.items()},
        "profile_key": facts.profile_key,
        "plan_digest": facts.plan_digest,
        "task_fingerprint": facts.task_fingerprint,
        "data_fingerprint": facts.data_fingerprint,
    }


def _confirmed_by(asked: TrialRun) -> str | None:
    """The run of the trial that a confirmation confirms; None where it is gone."""
    tags = {"kind": "trial", "number": str(asked.facts.number)}
    found = asked.recorded.search(tags, [asked.facts.experiment_id], asked.facts.parent)
    return found[0].run_id if found else None


def _origins(run: TrialRun, own_code: bool) -> Iterator[DataOrigin]:
    """Where the rows of each split come from, of a suite those of its members too."""
    settings = task_settings(run, own_code=own_code)
    told = told_of_rows(run).get("row_fingerprints") or {}
    whole = run.facts.data_fingerprint or run.facts.task_fingerprint or ""
    yield from _of_data(settings.data, told, whole)
    for member in member_settings(settings):
        of_member = {f"{member.name}/{split}": split for split in ("dev", "test")}
        for split in _of_data(member.data, {}, whole):
            name = f"{member.name}/{split.split}"
            if name in of_member:
                yield replace(split, split=name, digest=told.get(name, whole))


def _of_data(data: DataSettings, told: dict[str, str], whole: str) -> Iterator[DataOrigin]:
    for split in ("train", "dev", "test"):
        place = getattr(data, split)
        if place is None and (data.hub is None or split not in told):
            continue
        yield DataOrigin(
            split=split,
            place=place or split,
            digest=told.get(split, whole),
            hub=data.hub,
            subset=data.name,
            revision=data.revision,
        )


def _crowned(
    registry: Registry, version: Version, verdict: _Verdict, name: str, asked: TrialRun
) -> Promotion:
    found = verdict.rivalry
    registry.tag(
        version,
        {
            "since_ms": now_ms(),
            "before": _number(verdict.present),
            "difference": found.gap,
            "low": found.low,
            "high": found.high,
            "because": verdict.reason,
        },
    )
    registry.crown(version)
    registry.tag(version, {"crowned": "yes"})
    told = _told(verdict, name, asked, promoted=True)
    return replace(told, version=version.number, before=_number(verdict.present))


def _told(verdict: _Verdict, name: str, asked: TrialRun, *, promoted: bool) -> Promotion:
    measured, found = tested(asked), verdict.rivalry
    already = verdict.present is not None and _is_of(verdict.present, asked)
    return Promotion(
        promoted=promoted,
        reason=verdict.reason,
        model=name,
        version=_number(verdict.present),
        run_id=asked.run_id,
        metric=measured.objective.metric,
        value=measured.mean,
        difference=found.gap,
        low=found.low,
        high=found.high,
        is_champion=promoted or already,
    )
