"""Confirmed choices in an MLflow database of a test, as launches leave them, to be promoted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search.config.reading import parse_sweep
from search.tracking.facts import at_step
from search.tracking.tracker import Tracker
from tests.search.tracked import start_trial
from tests.trainables.families import Made
from tests.trainables.trained_examples import Example
from trainables.tasks.measured_rows import class_rows

ROWS = 400
"""Of the test set that the values stand for."""


@dataclass(frozen=True)
class Choice:
    """A sweep, its one trial, and what confirms it."""

    sweep: str
    trial: str
    confirmations: tuple[str, ...]


@dataclass(frozen=True)
class Launches:
    """Sweeps of one task on one base, at a tracking URI."""

    uri: str
    made: Made
    example: Example

    def choice(
        self,
        values: Mapping[int, float],
        *,
        name: str = "tiny",
        method: str = "pilora",
        weights: bool = True,
        rows: bool = True,
        test: str = "t" * 64,
        fingerprint: str = "f" * 64,
        state: Any = "complete",
        dev: float = 0.8,
    ) -> Choice:
        """A choice by the test accuracy of each of its seeds, over `ROWS` rows called `test`."""
        tracker = Tracker(self.uri, self.made.settings.name)
        task = self.made.settings.model_dump(mode="json")
        config = parse_sweep({"base": self.made.uri, "task": task, "confirm": None})
        tags = {
            "task": self.made.task.name, "task_fingerprint": fingerprint,
            "data_fingerprint": fingerprint, "base": self.example.base.fingerprint,
            "base_uri": self.made.uri, "metric": "accuracy", "mode": "max", "profile_key": "k" * 64,
        }  # fmt: skip
        sweep = tracker.start_sweep(name, config.resolved(), tags)
        named = {"train": fingerprint, "dev": "d" * 64, "test": test}
        tracker.log_task(sweep, {"row_fingerprints": named})
        choice = {"method": method, "rank": 3, "learning_rate": 1e-3}
        trial = start_trial(tracker, sweep, 7, choice, self.example.plan)
        tracker.log(trial, metrics=at_step({"accuracy": dev, "epochs": 2}, 2))
        if weights:
            self._keep_weights(tracker, trial)
        if state != "running":
            tracker.end(trial, state)
        confirmed = []
        for seed, value in values.items():
            run = start_trial(
                tracker, sweep, 7, choice, self.example.plan, {"seed": seed}, kind="confirm"
            )
            told = {"test_accuracy": value, "dev_accuracy": dev + seed / 1000}
            tracker.log(run, metrics=at_step(told, 0))
            if rows:
                tracker.log_test_rows(run, _rows(value, seed, fingerprint))
            if weights:
                self._keep_weights(tracker, run)
            tracker.end(run, "complete")
            confirmed.append(run)
        tracker.end(sweep, "complete")
        return Choice(sweep, trial, tuple(confirmed))

    def _keep_weights(self, tracker: Tracker, run_id: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "weights.safetensors"
            file.write_bytes(self.example.trained.to_bytes())
            tracker.log_file(run_id, file)


def no_model(folder: Path) -> Callable[..., AbstractContextManager[Path]]:
    """Stands for `mlflow_model`, which takes a second: a model that nobody can load."""

    @contextmanager
    def written(*_: Any) -> Iterator[Path]:
        (folder / "made").mkdir(exist_ok=True)
        (folder / "made" / "MLmodel").write_text("flavors: {}\n")
        yield folder / "made"

    return written


def _rows(value: float, seed: int, fingerprint: str) -> bytes:
    """Rows of two classes, as many of them right as the accuracy says, and which by the seed."""
    labels = np.arange(ROWS) % 2
    right = np.zeros(ROWS, bool)
    hard = np.random.default_rng(0).permutation(ROWS)
    right[hard[: round(value * ROWS)]] = True
    flipped = np.random.default_rng(seed).permutation(ROWS)[:2]
    right[flipped] = ~right[flipped]
    logits = np.eye(2)[np.where(right, labels, 1 - labels)]
    return class_rows("accuracy", fingerprint, labels, logits).to_bytes()
