"""Runs of trials in an MLflow database of a test, as a launch leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.config.reading import parse_sweep
from search.tracking.facts import at_step
from search.tracking.tracker import Tracker
from spaces.plan import Plan
from tests.search.tracked import start_trial
from tests.trainables.families import Made
from trainables.trained.weights import Trained


@dataclass(frozen=True)
class TrialRuns:
    """A database of its own in `folder`."""

    folder: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def trial(
        self,
        made: Made,
        choice: Mapping[str, Any],
        plan: Plan,
        trained: Trained | None,
        state: Any = "complete",
        kind: str = "trial",
        *,
        sweep: str | None = None,
        seed: int | None = None,
        **metrics: float,
    ) -> str:
        """Write a trial, with its weights where there are some; returns its run id.

        It is of a sweep of its own unless one is given.
        """
        tracker = Tracker(self.uri, made.settings.name)
        sweep = sweep or self._sweep(tracker, made)
        run_id = start_trial(tracker, sweep, 7, choice, plan, {"seed": seed}, kind=kind)
        tracker.log(run_id, metrics=at_step(metrics, 0))
        if trained is not None:
            file = self.folder / "weights.safetensors"
            file.write_bytes(trained.to_bytes())
            tracker.log_file(run_id, file)
            file.unlink()
        if state != "running":
            tracker.end(run_id, state)
        return run_id

    def sweep(self, made: Made) -> str:
        """Write a sweep alone; returns its run id."""
        return self._sweep(Tracker(self.uri, made.settings.name), made)

    @staticmethod
    def _sweep(tracker: Tracker, made: Made) -> str:
        task = made.settings.model_dump(mode="json")
        config = parse_sweep({"base": made.uri, "task": task, "confirm": None})
        tags = {
            "task": made.task.name,
            "task_fingerprint": made.task.fingerprint,
            "base": "f" * 64,
            "base_uri": made.uri,
        }
        return tracker.start_sweep("tiny", config.resolved(), tags)
