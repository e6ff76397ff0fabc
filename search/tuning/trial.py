"""A light trial: it hands its plan to the resident workers and reports what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import tune

from spaces.errors import JobError
from spaces.methods.registry import parse_choice
from spaces.planner import Planner
from spaces.profile import Profile
from spaces.target import BaseSize, TargetModule
from trainables.resident.jobs import LOSSES, Cancelled, Done, Epoch, Failed, TrialJob, TrialResult
from trainables.resident.queue import events_of
from trainables.training.settings import TrainSettings


@dataclass(frozen=True)
class TrialContext:
    """What every trial of a search shares, kept once in Ray's object store.

    `profile` is the profile's file as bytes, `size` that of the base; with `keep_weights` a
    finished job leaves its weights with the queue. `rows_seed` chooses the rows of cheap looks.
    """

    targets: tuple[TargetModule, ...]
    profile: bytes | None
    train: TrainSettings
    metric: str
    size: BaseSize | None = None
    keep_weights: bool = False
    rows_seed: int = 0

    @property
    def planner(self) -> Planner:
        """Who makes the plans."""
        profile = Profile.from_bytes(self.profile, "profile") if self.profile else None
        return Planner(self.targets, profile, self.size)


def job_name(number: int, seed: int | None = None, rows: float = 1.0) -> str:
    """The id that the job of an Optuna trial asks the queue for; the driver cancels by it.

    With the `seed` of a confirmation it is that of the choice's job there; a look at a share `rows`
    of the training rows has a job of its own.
    """
    if seed is not None:
        return f"confirm-{number}-seed-{seed}"
    return f"trial-{number:05d}" + ("" if rows >= 1.0 else f"-rows-{rows!r}")


class JobOfTrial(NamedTuple):
    """What `job_name` was given."""

    number: int
    seed: int | None = None
    rows: float = 1.0


def trial_of_job(job_id: str) -> JobOfTrial | None:
    """What `job_name` was given; None for a job of another kind."""
    match job_id.split("-", 3):
        case ["trial", number]:
            return JobOfTrial(int(number))
        case ["trial", number, "rows", rows]:
            return JobOfTrial(int(number), rows=float(rows))
        case ["confirm", number, "seed", seed]:
            return JobOfTrial(int(number), int(seed))
    return None


def run_trial(config: Mapping[str, Any], *, queue: Any, context: TrialContext) -> None:
    """Tune's function: hand the plan of one choice to the resident workers and report its epochs.

    `config` is ``{"choice": dict, "number": int, "seed": int}``, and for a trial that starts from
    trained weights ``"warm"``, their file, which can be read here: this runs on the driver's node.
    With ``"rows"``, shares of the training rows that end in 1, the plan is first trained anew on
    each of the others, a look that is reported once, as ``{"look": share, "epoch": 0}`` with its
    last epoch's metrics; Tune's scheduler may end the trial there. The last epoch is reported when
    the job is done, so that a trial with all its epochs is one that the worker has finished.

    Raises:
        JobError: the job failed, with the worker's own error in one line.
    """
    choice = parse_choice(config["choice"])
    plan = context.planner.plan(choice)
    full = TrialJob(
        job_id=job_name(config["number"]),
        plan=plan.to_bytes(),
        learning_rate=choice.learning_rate,
        seed=config["seed"],
        train=context.train,
        method=choice.method,
        keep_weights=context.keep_weights,
        warm=Path(config["warm"]).read_bytes() if config.get("warm") else None,
        rows_seed=context.rows_seed,
    )
    *looks, _ = config.get("rows", (1.0,))
    counts = {"trainable_params": plan.trainable_params}
    epochs = context.train.epochs * plan.length
    for share in looks:
        name = job_name(config["number"], rows=share)
        look = replace(full, job_id=name, rows=share, keep_weights=False)
        told = [*_epochs(look, queue, context.metric, epochs)]
        if not told or told[-1].result is None:
            return
        tune.report({**told[-1].metrics, **counts, "look": share, "epoch": 0})
    for done in _epochs(full, queue, context.metric, epochs):
        where = {"epoch": done.epoch, "epochs_done": done.epoch, LOSSES: done.losses}
        row = {**done.metrics, **counts, **where}
        if done.result is not None:
            tune.report({**row, "head_params": done.result.head_params})
        elif done.epoch < epochs:
            tune.report(row)


class _EpochOf(NamedTuple):
    """An epoch of a job; the last comes again with the job's `result`, once it is done."""

    epoch: int
    metrics: Mapping[str, float]
    losses: Sequence[tuple[int, float]]
    result: TrialResult | None = None


def _epochs(job: TrialJob, queue: Any, metric: str, epochs: int) -> Iterator[_EpochOf]:
    """Submit a job of so many `epochs` and hear of each of them once, until it is cancelled.

    Raises:
        JobError: the job failed, or reports no such metric.
    """
    last: Epoch | None = None
    for event in events_of(queue, ray.get(queue.submit.remote(job))):
        match event:
            # A job whose worker died starts again at its first epoch.
            case Epoch(epoch, metrics) if last is None or epoch > last.epoch:
                if metric not in metrics:
                    raise JobError(
                        f"search.metric: the job reports {', '.join(sorted(metrics))} and no "
                        f"{metric}; use one of these"
                    )
                last = event
                yield _EpochOf(epoch, metrics, event.losses)
            case Done(TrialResult() as result):
                if last is None or last.epoch < epochs:
                    reported = 0 if last is None else last.epoch
                    raise JobError(
                        f"{job.job_id}: ended after epoch {reported} of {epochs}; look for its "
                        "worker's log"
                    )
                yield _EpochOf(last.epoch, last.metrics, last.losses, result)
            case Failed(error):
                raise JobError(one_line(error))
            case Cancelled():
                return  # the driver has ended this trial; an error would only be noise


def one_line(text: str) -> str:
    return " ".join(text.split()) or "failed without an error"
