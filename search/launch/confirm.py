"""Confirmation: the best choices retrained with other seeds and measured on test.

LoRA variants differ by little once the learning rate is tuned. The summary therefore sets each
method beside tuned LoRA, seed by seed and on the same test rows, and says plainly when the
difference is within the noise.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from search.config.sweep import SweepConfig
from search.launch.lm_eval import lm_eval_tasks
from search.objective import Objective
from search.progress import Progress
from search.queries.comparison import (
    Confirmation,
    OnTest,
    as_chosen,
    beside_paper,
    kept_rows,
    summarize,
)
from search.queries.lm_eval_scores import as_metrics, settings_tags
from search.tracking.facts import now_ms, plan_counts
from search.tracking.journal import end_of_trial
from search.tracking.relay import Relay
from search.tracking.run_names import measured_name, trial_name
from search.tracking.runs import RecordedRuns
from search.tracking.tracker import Tracker
from search.tracking.weights import WeightFiles
from search.tuning.trial import job_name
from spaces.errors import CancelledJobError, JobError, TrackingError
from spaces.plan import Plan
from trainables.resident.jobs import LOSSES, Epoch, Event, Started, TrialJob
from trainables.tasks.collapse import is_collapsed
from trainables.tasks.measured_rows import MeasuredRows, read_measured_rows

if TYPE_CHECKING:
    from trainables.resident.groups import ResidentWorkers


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _ToConfirm:
    """A choice to be trained with one more seed; `is_first` of the choice's seeds."""

    row: Mapping[str, Any]
    plan: Plan
    seed: int
    is_first: bool

    @property
    def key(self) -> tuple[int, int]:
        """The number of the trial that it confirms, and the seed."""
        return self.row["number"], self.seed

    @property
    def job_id(self) -> str:
        """Its name in the queue."""
        return job_name(*self.key)

    def keeps_weights(self, which: str) -> bool:
        """Whether its weights are kept; those of a whole base only once, unless all are wanted."""
        is_whole = self.plan.tuner is not None and self.plan.tuner.name == "full"
        return which == "all" or (which == "best" and (self.is_first or not is_whole))


def confirm_best(
    chosen: Sequence[Mapping[str, Any]],
    *,
    config: SweepConfig,
    plans: Sequence[Plan],
    workers: ResidentWorkers,
    relay: Relay,
    tracker: Tracker,
    sweep_run_id: str,
    view: Progress,
    kept: WeightFiles,
) -> list[Confirmation]:
    """Retrain each row of `chosen` (best first) with `confirm.seeds` seeds; every run is logged.

    A run that fails is told and left out; a choice without any value is left out of the summary. A
    run that an earlier launch of the sweep has ended is not done again, where the journal or MLflow
    has it; nor is one for a choice that another row stands for too: rows of one trial's number are
    the same training. `kept` takes the weights of each, by its number in the journal, negated.
    """
    assert config.confirm is not None
    seeds = [config.train.seed + 1 + i for i in range(config.confirm.seeds)]
    once: dict[int, tuple[Mapping[str, Any], Plan]] = {}
    for row, plan in zip(chosen, plans, strict=True):
        once.setdefault(row["number"], (row, plan))
    jobs = [
        _ToConfirm(row, plan, seed, is_first=seed == seeds[0])
        for row, plan in once.values()
        for seed in seeds
    ]
    known = _known(relay, tracker, sweep_run_id, config.task.metric)
    left = sum(job.key not in known for job in jobs)
    known = _by_settings_of(config, known, [job.key for job in jobs], view)
    view.stage("confirm", f"{len(once)} choices x {len(seeds)} seeds on test", left)
    done = 0

    def run(job: _ToConfirm) -> OnTest | None:
        nonlocal done
        tested = known.get(job.key)
        if tested is None:
            tested = _run_one(job, config, workers, relay, view, kept)
        done += 1
        shown = "not measured" if tested is None else f"{config.task.metric} {tested.value:.4f}"
        shown += ", collapsed" if tested is not None and tested.collapsed else ""
        view.message(f"confirm {done}/{len(jobs)}: {job.row['arm']} seed {job.seed}: {shown}")
        return tested

    measured: dict[int, dict[int, OnTest]] = {number: {} for number in once}
    with ThreadPoolExecutor(max_workers=config.cluster.groups + 1) as pool:
        for job, tested in zip(jobs, pool.map(run, jobs), strict=True):
            if tested is not None:
                measured[job.row["number"]][job.seed] = tested
    named = {"sweep": config.name, "sweep_run": sweep_run_id}
    found = [({**row, **named}, measured[row["number"]]) for row in chosen]
    objective = Objective(config.task.metric, config.search.mode)
    values = {row["number"]: row.get("value") for row in chosen}
    summary = [as_chosen(row, values[row.number], objective) for row in summarize(found, objective)]
    return beside_paper(summary, config.published)


def _by_settings_of(
    config: SweepConfig,
    known: Mapping[tuple[int, int], OnTest],
    keys: Sequence[tuple[int, int]],
    view: Progress,
) -> dict[tuple[int, int], OnTest]:
    """What is known, without lm-eval's scores by other settings than the sweep now has."""
    asked = lm_eval_tasks(config)
    digest = None if asked is None else asked.settings.digest
    before = [known[key] for key in keys if key in known]
    others = sum(each.is_asked_otherwise(digest) for each in before)
    unscored = sum(not each.lm_eval for each in before) + others
    if unscored and asked is not None:
        by_others = f" ({others} have some by other settings, left out)" if others else ""
        view.message(
            f"{unscored} confirmations of before have no scores of lm-eval{by_others}; they are "
            "not done again: launch under another name for theirs"
        )
    return {key: each.by_settings(digest) for key, each in known.items()}


def _known(
    relay: Relay, tracker: Tracker, sweep_run_id: str, metric: str
) -> dict[tuple[int, int], OnTest]:
    """(trial number, seed) -> what earlier launches of the sweep have measured."""
    journal = relay.journal
    rows = journal.confirmed_rows()
    told, tags = journal.confirmed_metrics(), journal.confirmed_tags()
    own = {
        key: OnTest.of(
            value,
            _read(rows.get(key)),
            told.get(key, {}),
            tags.get(key, {}).get("lm_eval_digest"),
            metric,
        )
        for key, value in journal.confirmed().items()
    }
    return {**_logged(tracker, sweep_run_id, metric, own), **own}


def _read(test_rows: bytes | None) -> MeasuredRows | None:
    return None if test_rows is None else read_measured_rows(test_rows)


def _logged(
    tracker: Tracker, sweep_run_id: str, metric: str, known: Mapping[tuple[int, int], OnTest]
) -> dict[tuple[int, int], OnTest]:
    """What MLflow alone has: (trial number, seed) -> what the confirmation has measured."""
    try:
        runs = tracker.children(sweep_run_id)
    except TrackingError as error:
        logger.warning("earlier confirmation runs are not looked up: %s", error)
        return {}
    name = f"test_{metric}"
    found = {
        (run.number, run.seed): run
        for run in runs
        if run.kind == "confirm" and run.status == "complete" and name in run.metrics
        if run.number is not None and run.seed is not None
        if (run.number, run.seed) not in known
    }
    if not found:
        return {}
    try:
        rows = kept_rows(RecordedRuns(tracker.uri), [run.run_id for run in found.values()])
    except TrackingError as error:
        logger.warning("what earlier confirmations said of each row is not looked up: %s", error)
        rows = {}
    return {
        key: OnTest.of(
            run.metrics[name], rows.get(run.run_id), run.metrics, run.lm_eval_digest, metric
        )
        for key, run in found.items()
    }


def _run_one(
    confirmed: _ToConfirm,
    config: SweepConfig,
    workers: ResidentWorkers,
    relay: Relay,
    view: Progress,
    kept: WeightFiles,
) -> OnTest | None:
    row, plan, seed = confirmed.row, confirmed.plan, confirmed.seed
    choice, metric, journal = row["choice"], config.task.metric, relay.journal
    run = journal.new_confirmation()
    relay.keep_plan(run, plan)
    asked = lm_eval_tasks(config)
    body: dict[str, Any] = {
        "kind": "confirm",
        "number": row["number"],
        "choice": choice,
        "tags": {
            "seed": seed,
            "arm": row["arm"],
            "plan_digest": plan.digest,
            **({} if asked is None else settings_tags(asked.settings)),
        },
        "metrics": plan_counts(plan),
    }
    state, error_text = "complete", None
    metrics: Mapping[str, float] = {}
    scores: Mapping[str, float] = {}
    logged: Mapping[str, float] = {}
    test_rows: bytes | None = None
    keeps_weights = confirmed.keeps_weights(config.tracking.keep_weights)

    def begin() -> None:  # no more than once, as the journal keeps the first
        relay.append(partial(journal.start, run, body, now_ms(), confirmed.key))

    losses: dict[int, float] = {}

    def heard(event: Event) -> None:
        match event:
            case Started():
                begin()
                view.trial_started(row["number"], row["arm"], plan.trainable_params, seed)
            case Epoch():  # of a job that starts again the steps come again
                losses.update(event.losses)

    try:
        job = TrialJob(
            job_id=confirmed.job_id,
            plan=plan.to_bytes(),
            learning_rate=choice["learning_rate"],
            seed=seed,
            train=config.train,
            split="test",
            method=row["method"],
            keep_weights=keeps_weights,
            lm_eval=asked,
        )
        result = workers.run(job, on_event=heard)
        metrics, test_rows, scores = result.metrics, result.test_rows, result.lm_eval
        if (error_text := result.lm_eval_error) is not None:
            view.message(f"confirmation of trial {row['number']}, seed {seed}: {error_text}")
    except CancelledJobError:  # with the launch; the next one does it again
        state = "cancelled"
    except JobError as error:
        state, error_text = "failed", str(error)
        logger.warning("confirmation of trial %s, seed %s: %s", row["number"], seed, error)
    if state != "cancelled":  # one that only waited never began
        begin()
    view.trial_finished(row["number"], state, None, seed)
    if metrics:
        logged = _on_test(metrics, metric) | as_metrics(scores)
        epochs = config.train.epochs * plan.length
        told = {"metrics": logged, LOSSES: sorted(losses.items())}
        relay.append(partial(journal.epoch, run, epochs, told, now_ms()))
        if keeps_weights:
            _keep_weights(kept, run, workers, confirmed.job_id)
    value = float(metrics[metric]) if metrics else None
    name = measured_name(
        trial_name(row["number"], choice, row["arm"], seed), f"test {metric}", value
    )
    end = end_of_trial(state, error_text, {}, collapsed=is_collapsed(metrics), name=name)
    relay.append(partial(journal.end, run, end, now_ms(), value, test_rows))
    if value is None:
        return None
    digest = None if asked is None else asked.settings.digest
    return OnTest.of(value, _read(test_rows), logged, digest, metric)


def _keep_weights(kept: WeightFiles, run: int, workers: ResidentWorkers, job_id: str) -> None:
    try:
        weights = workers.collect(job_id)
        if weights is not None:
            kept.keep(-run, weights)
    except (OSError, JobError) as error:  # a full disk must not end the confirmation
        logger.warning("the weights of %s are not kept: %s", job_id, error)


def _on_test(metrics: Mapping[str, float], metric: str) -> dict[str, float]:
    """The metric under a name that says it is not the dev metric of a trial."""
    return {f"test_{k}" if k == metric else k: float(v) for k, v in metrics.items()}
