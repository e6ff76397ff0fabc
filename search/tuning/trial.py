"""A light trial: it hands its plan to the resident workers and reports what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from spaces.errors import JobError
from spaces.methods.registry import parse_choice
from spaces.planner import Planner
from spaces.profile import Profile
from spaces.target import BaseSize, TargetModule
from trainables.resident.jobs import Cancelled, Done, Epoch, Failed, TrialJob, TrialResult
from trainables.resident.queue import events_of
from trainables.training.settings import TrainSettings


@dataclass(frozen=True)
class TrialContext:
    """What every trial of a search shares, kept once in Ray's object store.

    `profile` is the profile's file as bytes, `size` that of the base; with `keep_weights` a
    finished job leaves its weights with the queue.
    """

    targets: tuple[TargetModule, ...]
    profile: bytes | None
    train: TrainSettings
    metric: str
    size: BaseSize | None = None
    keep_weights: bool = False

    @property
    def planner(self) -> Planner:
        """Who makes the plans."""
        profile = Profile.from_bytes(self.profile, "profile") if self.profile else None
        return Planner(self.targets, profile, self.size)


def job_name(number: int, seed: int | None = None) -> str:
    """The id that the job of an Optuna trial asks the queue for; the driver cancels by it.

    With the `seed` of a confirmation it is that of the choice's job there.
    """
    return f"trial-{number:05d}" if seed is None else f"confirm-{number}-seed-{seed}"


def trial_of_job(job_id: str) -> tuple[int, int | None] | None:
    """The number and the seed that `job_name` was given; None for a job of another kind."""
    match job_id.split("-"):
        case ["trial", number]:
            return int(number), None
        case ["confirm", number, "seed", seed]:
            return int(number), int(seed)
    return None


def run_trial(config: Mapping[str, Any], *, queue: Any, context: TrialContext) -> None:
    """Tune's function: hand the plan of one choice to the resident workers and report its epochs.

    `config` is ``{"choice": dict, "number": int, "seed": int}``, and for a trial that starts from
    trained weights ``"warm"``, their file, which can be read here: this runs on the driver's node.
    The last epoch is reported when the job is done, so that a trial with all its epochs is one that
    the worker has finished.

    Raises:
        JobError: the job failed, with the worker's own error in one line.
    """
    choice = parse_choice(config["choice"])
    plan = context.planner.plan(choice)
    epochs = context.train.epochs * plan.length
    job = TrialJob(
        job_id=job_name(config["number"]),
        plan=plan.to_bytes(),
        learning_rate=choice.learning_rate,
        seed=config["seed"],
        train=context.train,
        method=choice.method,
        keep_weights=context.keep_weights,
        warm=Path(config["warm"]).read_bytes() if config.get("warm") else None,
    )
    last: dict[str, Any] | None = None
    reported = 0
    for event in events_of(queue, ray.get(queue.submit.remote(job))):
        match event:
            # A job whose worker died starts again at its first epoch.
            case Epoch(epoch, metrics) if epoch > reported:
                if context.metric not in metrics:
                    raise JobError(
                        f"search.metric: the job reports {', '.join(sorted(metrics))} and no "
                        f"{context.metric}; use one of these"
                    )
                row = {
                    **metrics,
                    "trainable_params": plan.trainable_params,
                    "epoch": epoch,
                    "epochs_done": epoch,
                }
                if epoch < epochs:
                    tune.report(row)
                    reported = epoch
                else:
                    last = row
            case Done(TrialResult(head_params=head_params)):
                if last is None:
                    raise JobError(
                        f"{job.job_id}: ended after epoch {reported} of {epochs}; look for its "
                        "worker's log"
                    )
                tune.report({**last, "head_params": head_params})
            case Failed(error):
                raise JobError(one_line(error))
            case Cancelled():
                return  # the driver has ended this trial; an error would only be noise


def one_line(text: str) -> str:
    return " ".join(text.split()) or "failed without an error"
