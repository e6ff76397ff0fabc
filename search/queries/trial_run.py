"""A trial's run as MLflow has it: its choice, its plan, and the weights that it has kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.redaction import redacted
from search.tracking.facts import PARENT, PREFIX
from search.tracking.mlflow import call, connect
from spaces.errors import ConfigError, UsageError
from spaces.plan import Plan

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from trainables.trained.weights import Trained

PLAN, CHOICE, WEIGHTS, SWEEP = (
    "plan.safetensors",
    "choice.yaml",
    "weights.safetensors",
    "sweep.yaml",
)


@dataclass(frozen=True)
class TrialRun:
    """The run of a trial. `tags` are without their prefix; `plan_digest` is among them."""

    run_id: str
    tracking_uri: str
    tags: Mapping[str, str]
    parent: str | None
    files: frozenset[str]
    """Names of its artifacts."""

    @property
    def method(self) -> str:
        """The method of its choice."""
        return self.tags.get("method", "")

    def artifact(self, name: str) -> bytes:
        """One artifact of the run. Raises UsageError where it has none of that name."""
        if name not in self.files:
            raise UsageError(f"{self.run_id}: has no {name} in MLflow; give the run of a trial")
        return _artifact(self.tracking_uri, self.run_id, name)

    def plan(self) -> Plan:
        """The plan that was trained."""
        return Plan.from_bytes(self.artifact(PLAN), f"{self.run_id}/{PLAN}")

    def trained(self) -> Trained:
        """The weights that were trained. Raises UsageError, with the way to them, where none are
        kept."""
        from trainables.trained.weights import read_trained

        if WEIGHTS not in self.files:
            raise UsageError(f"{self.run_id}: {self._why_no_weights()}")
        return read_trained(self.artifact(WEIGHTS), f"{self.run_id}/{WEIGHTS}")

    def sweep(self) -> dict[str, Any]:
        """The sweep that the trial was part of, as plain data."""
        from search.config.yaml_file import parse_yaml

        if self.parent is None:
            raise UsageError(f"{self.run_id}: belongs to no sweep; give the run of a trial")
        text = _artifact(self.tracking_uri, self.parent, SWEEP).decode()
        sweep: dict[str, Any] = parse_yaml(text, f"{self.parent}/{SWEEP}")
        return sweep

    def _why_no_weights(self) -> str:
        if self.tags.get("kind") == "confirm":
            return (
                "is a confirmation, which keeps no weights; export the trial that it confirms "
                f"(number {self.tags.get('number', '?')} of its sweep)"
            )
        status = self.tags.get("status", "running")
        if status == "running":
            return "has no weights yet; export it when its sweep has ended"
        if status != "complete":
            return (
                f"has no weights, for it is {status}; export a complete trial "
                "(`ranksweep best` shows them)"
            )
        return (
            "has kept no weights; launch with tracking.keep_weights: all (best keeps those of each "
            "method's best trial), or export a trial that has them"
        )


def find_trial(tracking_uri: str, run_id: str) -> TrialRun:
    """The run of a trial. Raises ConfigError where no run has that id, or it is no trial's."""
    from mlflow.exceptions import MlflowException

    client = connect(tracking_uri, must_exist=True)

    def look() -> Any:
        try:
            return client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    run = call(tracking_uri, look)
    if run is None:
        raise ConfigError(
            f"RUN_ID: {redacted(tracking_uri)} has no run {run_id[:80]!r}; "
            "`ranksweep best --task T` shows the ids of trials"
        )
    tags = {
        key.removeprefix(PREFIX): value
        for key, value in run.data.tags.items()
        if key.startswith(PREFIX)
    }
    kind = tags.get("kind")
    if kind not in ("trial", "confirm"):
        what = "no run of ranksweep" if kind is None else f"the run of a {kind}"
        raise ConfigError(
            f"RUN_ID: {run_id} is {what}; give that of a trial (`ranksweep best --task T` shows "
            "them)"
        )
    files = call(tracking_uri, partial(_names, client, run_id))
    return TrialRun(run_id, tracking_uri, tags, run.data.tags.get(PARENT), files)


def _names(client: MlflowClient, run_id: str) -> frozenset[str]:
    return frozenset(file.path for file in client.list_artifacts(run_id))


def _artifact(tracking_uri: str, run_id: str, name: str) -> bytes:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client = connect(tracking_uri, must_exist=True)
    with tempfile.TemporaryDirectory(prefix="ranksweep-") as folder:
        path = call(tracking_uri, lambda: client.download_artifacts(run_id, name, folder))
        return Path(path).read_bytes()
