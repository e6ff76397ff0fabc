"""A small base, its profile, a space over all methods, and a group that trains on paper."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray
from optuna.trial import FrozenTrial
from ray import cloudpickle

from search.config.sweep import SearchSettings
from search.objective import Objective
from search.study.proposals import Proposals
from search.study.standing import is_handed_out
from search.study.study import open_study
from search.tuning.searcher import StudySearcher
from search.tuning.trial import trial_of_job
from spaces.plan import Plan
from spaces.planner import Planner
from spaces.profile import ModuleProfile, Profile
from spaces.search_space import SearchSpace
from spaces.target import TargetModule
from trainables.resident.jobs import (
    Cancelled,
    Done,
    Epoch,
    Failed,
    GroupFacts,
    Started,
    TrialJob,
    TrialResult,
)
from trainables.training.settings import TrainSettings

ACCURACY = Objective("accuracy", "max")
TARGETS = tuple(TargetModule(f"layer{i}.dense", (24, 16)) for i in range(4))
SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "methods": {
        "lora": {"rank": [1, 2, 4, 8]},
        "pilora": {
            "rank": [2, 4, 8],
            "supplementary_rank": [0, 1],
            "partition": {"rule": "cumulative", "threshold": {"low": 0.3, "high": 0.9}},
        },
        "taso": {"retention": {"low": 0.1, "high": 0.5}, "top_percent": [5, 10], "rounds": 1},
        "sensitivity": {"mean_rank": [1, 2, 4]},
        "joint": {},
    },
}


def toy_profile() -> Profile:
    """Random statistics of the toy base: 10 scored steps, masks of 5 and 10 percent."""
    rng = np.random.default_rng(0)
    modules = {}
    for target in TARGETS:
        rows, cols = target.shape
        modules[target.name] = ModuleProfile(
            hits=rng.integers(0, 11, rows).astype(np.int32),
            row_importance=rng.random(rows).astype(np.float32),
            sensitivity_row_count=rng.integers(0, cols + 1, (2, rows)).astype(np.uint16),
            sensitivity_col_count=rng.integers(0, rows + 1, (2, cols)).astype(np.uint16),
            gradient_row_count=rng.integers(0, cols + 1, (2, rows)).astype(np.uint16),
            gradient_col_count=rng.integers(0, rows + 1, (2, cols)).astype(np.uint16),
            hessian_diag=rng.random(cols).astype(np.float32),
        )
    return Profile(
        targets=TARGETS,
        scored_steps=10,
        top_percent_grid=(5.0, 10.0),
        modules=modules,
        metadata={},
    )


def toy_space(*methods: str, **keys: Any) -> SearchSpace:
    """The space over some of the methods; `keys` replaces what is written of a method."""
    written = {name: SPACE["methods"][name] for name in methods or SPACE["methods"]}
    space = SearchSpace.parse({**SPACE, "methods": {**written, **keys}})
    return space.fitted(TARGETS, (5.0, 10.0))


def toy_study(
    folder: Path, objectives: tuple[str, ...] = ("accuracy",), sampler: str = "tpe"
) -> optuna.Study:
    """A study in a SQLite file of the folder, opened again where it is there."""
    return open_study(
        f"sqlite:///{folder}/study.db",
        "toy",
        objectives=objectives,
        mode="max",
        sampler=sampler,
        seed=0,
    )


def handed_out(study: optuna.Study) -> list[FrozenTrial]:
    """The study's trials that count."""
    return [trial for trial in study.get_trials(deepcopy=False) if is_handed_out(trial)]


def searcher_over(
    study: optuna.Study,
    space: SearchSpace | None = None,
    *,
    epochs: int = 3,
    repeats: tuple[int, int] | None = None,
    profile: Profile | None = None,
    waits: Callable[[], bool] = lambda: True,
    **settings: Any,
) -> StudySearcher:
    """A searcher of ten trials; `settings` are those of a sweep's search, or of `Proposals`."""
    sections = {key: settings.pop(key) for key in SearchSettings.model_fields if key in settings}
    if repeats is not None:
        sections["repeats"] = {"top": repeats[0], "seeds": repeats[1]}
    search = SearchSettings(**{"trials": 10, "sampler": "tpe", **sections})
    train = TrainSettings(epochs=epochs, seed=sections.pop("seed", 0))
    planner = Planner(TARGETS, profile or toy_profile())
    space = space or toy_space()
    return StudySearcher(Proposals(study, space, planner, search, train, **settings), waits)


class PaperGroup:
    """A group of resident workers that takes jobs and answers with curves on paper.

    `script` maps an Optuna number to what happens to its trial: ``good``, ``bad`` (far behind, and
    slower from its second epoch on), ``nan`` (ends at NaN), ``dip`` (NaN at its first epoch only),
    ``inf``, ``fail`` (after its first epoch), ``die`` (the worker dies once, after its first
    epoch), ``slow`` (a minute an epoch), ``tiring`` (no better than its share of the rows).
    """

    def __init__(self, script: dict[int, str], pace: float = 0.02) -> None:
        self._script = script
        self._pace = pace
        self._dead: set[str] = set()
        self._log: list[tuple[str, int, str]] = []

    def serve(self, queue: Any) -> list[tuple[str, int, str]]:
        """Serve jobs until the queue is closed; returns (job, epochs trained, how it ended)."""
        ray.get(queue.register.remote(0, GroupFacts("paper")))
        while True:
            taken = ray.get(queue.take.remote(0, 1.0))
            if taken == "closed":
                return self._log
            if taken is not None:
                job_id, job = taken
                try:
                    self._train(queue, job_id, job)
                except _WorkerDiedError:
                    ray.get(queue.register.remote(0, GroupFacts("paper")))

    def _train(self, queue: Any, job_id: str, job: TrialJob) -> None:
        trial = trial_of_job(job_id)
        assert trial is not None
        fate = self._script.get(trial.number, "good")
        ray.get(queue.report.remote(job_id, Started()))
        metrics: dict[str, float] = {}
        epochs = job.train.epochs * Plan.from_bytes(job.plan).length
        for epoch in range(1, epochs + 1):
            if not self._wait(queue, job_id, self._seconds(fate, epoch, job)):
                return self._stopped(queue, job_id, epoch - 1)
            metrics = {
                "accuracy": self._accuracy(fate, epoch, job),
                "dev_loss": 1.0 / epoch,
                "train_loss": 0.9 / epoch,
            }
            if ray.get(queue.report.remote(job_id, Epoch(epoch, metrics))):
                return self._stopped(queue, job_id, epoch)
            if fate == "fail":
                failed = Failed("RuntimeError: out of memory\nat step 3")
                ray.get(queue.report.remote(job_id, failed))
                return self._log.append((job_id, epoch, "failed"))
            if fate == "die" and job_id not in self._dead:
                self._dead.add(job_id)
                raise _WorkerDiedError
        result = TrialResult(metrics, head_params=34, ready_at=0.0, first_step_at=0.0)
        ray.get(queue.report.remote(job_id, Done(result)))
        return self._log.append((job_id, epochs, "done"))

    def _seconds(self, fate: str, epoch: int, job: TrialJob) -> float:
        if fate == "slow":
            return 60.0
        # A trial to be stopped gives the driver time to do so on a busy machine; not in a look.
        return 3.0 if fate == "bad" and epoch > 1 and job.rows == 1.0 else self._pace

    def _wait(self, queue: Any, job_id: str, seconds: float) -> bool:
        """One epoch of work; False where the job is to stop, asked at every step as workers do."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(0.02, seconds))
            if ray.get(queue.is_cancelled.remote(job_id)):
                return False
        return True

    def _stopped(self, queue: Any, job_id: str, epochs: int) -> None:
        ray.get(queue.report.remote(job_id, Cancelled()))
        self._log.append((job_id, epochs, "cancelled"))

    def _accuracy(self, fate: str, epoch: int, job: TrialJob) -> float:
        if (fate == "nan" and epoch == job.train.epochs) or (fate == "dip" and epoch == 1):
            return float("nan")
        if fate == "inf":
            return float("inf")
        if fate == "tiring":
            return job.rows
        if fate == "bad":
            return 0.1 + 0.001 * epoch
        return 0.5 + 0.1 * epoch


class _WorkerDiedError(Exception):
    """The worker's process is gone."""


# Ray's workers need not have the tests on their path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
