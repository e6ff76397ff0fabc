"""Sweeps in an MLflow database by the ten thousand trials, written straight into its tables.

What a run says is what runs of this version say, in tags, params and metrics of the same sizes;
nothing was trained. Values are drawn: of each method's choices around a mean, those of a choice's
seeds around the choice.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

ARMS = ("lora", "pilora", "taso", "sensitivity", "joint")
SUMMARIES = ("all", "none", "some")


@dataclass
class ManySweeps:
    """What is to be written. `digits` rounds values, so that many are equal; `repeats` and
    `confirmed` are shares of the choices and of the methods' best. `summaries` says which sweeps
    have told what queries need, `gone` the share of sweeps whose own run is not there."""

    sweeps: int = 50
    trials: int = 200
    seed: int = 0
    tasks: int = 1
    seeds: int = 3
    spread: float = 0.02
    noise: float = 0.01
    digits: int | None = None
    repeats: float = 0.02
    confirmed: float = 1.0
    mode: Literal["max", "min"] = "max"
    summaries: Literal["all", "none", "some"] = "all"
    data: int = 1
    padding: bool = True
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def write(self, uri: str) -> int:
        """Write them into the MLflow database of a SQLAlchemy URI; returns the runs written."""
        from mlflow.store.tracking.dbmodels.models import (
            SqlLatestMetric,
            SqlParam,
            SqlRun,
            SqlTag,
        )
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = client.get_experiment_by_name("many")
        experiment = found.experiment_id if found else client.create_experiment("many")
        self._rng, self._experiment = np.random.default_rng(self.seed), int(experiment)
        self._now = 1_700_000_000_000
        tables = {"runs": SqlRun, "tags": SqlTag, "params": SqlParam, "metrics": SqlLatestMetric}
        self.runs = {name: [] for name in tables}
        for number in range(self.sweeps):
            self._sweep(number)
        store = client._tracking_client.store
        with store.engine.begin() as connection:
            for name, model in tables.items():
                rows = self.runs[name]
                for start in range(0, len(rows), 20_000):
                    connection.execute(model.__table__.insert(), rows[start : start + 20_000])
            if store.engine.dialect.name == "postgresql":
                connection.exec_driver_sql("ANALYZE")  # as its autovacuum does within minutes
        return len(self.runs["runs"])

    def _sweep(self, number: int) -> None:
        from search.queries.sweep_summary import summary_of

        data = f"{self._rng.integers(self.data):064x}"
        own = {
            "task": f"task{number % self.tasks}",
            "task_fingerprint": data[::-1],
            "data_fingerprint": data,
            "base": f"{0x0531 + number % 2:064x}",
            "base_uri": f"hub:org/base-{number % 2}@main",
            "metric": "score",
            "mode": self.mode,
            "profile_key": "c" * 64,
            "sweep": f"sweep-{number}",
        }
        told = {"kind": "sweep", "status": "complete", "host": "node", "trials": self.trials}
        padding = {f"key.{i}": "value" for i in range(126)} if self.padding else {}
        sweep = self._run({**own, **told, "folder": f"/sweeps/{number}"}, padding, {})
        begun: list[Any] = []
        best: dict[str, tuple[float, dict[str, Any], dict[str, float]]] = {}
        sign = 1 if self.mode == "max" else -1
        for trial in range(self.trials):
            arm = ARMS[int(self._rng.integers(len(ARMS)))]
            value = self._value(0.8 + 0.01 * number / max(self.sweeps, 1), self.spread)
            tags, metrics = self._trial(own, arm, trial, value)
            begun.append(self._run(tags, self._params(), metrics, sweep))
            if tags["status"] != "complete":
                continue
            if arm not in best or sign * value > sign * best[arm][0]:
                best[arm] = value, tags, metrics
            if self._rng.random() < self.repeats:
                for repeat in (1, 2):
                    again = self._value(value, self.noise)
                    more = {**tags, "repeat": repeat, "number": f"{10_000 * repeat + trial}"}
                    begun.append(
                        self._run(more, self._params(), {**metrics, "score": again}, sweep)
                    )
        for value, tags, metrics in best.values():
            if self._rng.random() < self.confirmed:
                for seed in range(1, self.seeds + 1):
                    dev, test = (self._value(value - 0.01 * sign, self.noise) for _ in range(2))
                    measured = {**metrics, "dev_score": dev, "test_score": test}
                    more = {**tags, "kind": "confirm", "seed": seed}
                    begun.append(self._run(more, self._params(), measured, sweep))
        if self.summaries == "all" or (self.summaries == "some" and number % 2):
            summary = summary_of(begun[::-1]).as_tag()
            if summary is not None:
                self.runs["tags"].append(
                    {"key": "ranksweep.summary", "value": summary, "run_uuid": sweep.run_id}
                )

    def _value(self, mean: float, spread: float) -> float:
        drawn = float(self._rng.normal(mean, spread))
        return drawn if self.digits is None else round(drawn, self.digits)

    def _trial(
        self, own: Mapping[str, Any], arm: str, number: int, value: float
    ) -> tuple[dict[str, Any], dict[str, float]]:
        rank = int(2 ** self._rng.integers(1, 6))
        rate = float(self._rng.uniform(1e-4, 1e-3))
        choice = {"method": arm, "rank": rank, "alpha": 2.0 * rank, "learning_rate": rate}
        tags = {
            **own,
            "kind": "trial",
            "status": "complete" if self._rng.random() < 0.85 else "pruned",
            "arm": arm,
            "method": arm,
            "number": number,
            "choice": json.dumps(choice, sort_keys=True),
            "plan_digest": "d" * 64,
            "seed": 0,
        }
        classes = 1.0 if self._rng.random() < 0.02 else 2.0
        metrics = {
            "score": value,
            "trainable_params": float(1000 * rank + self._rng.integers(3)),
            "peak_trainable_params": 1000.0 * rank,
            "memory_bytes": float(2**30 + 2**20 * rank),
            "train_loss": 0.3,
            "dev_loss": 0.5,
            "learning_rate": 1e-5,
            "step_time": 0.1 + 0.01 * rank,
            "training_seconds": 8.0,
            "evaluation_seconds": 0.5,
            "predicted_classes": classes,
            "epoch": 3.0,
            "head_params": 770.0,
        }
        if self.padding:
            tags["features"] = json.dumps({f"feature_{i}": 0.5 for i in range(24)})
        return tags, metrics

    def _params(self) -> dict[str, str]:
        return {f"key_{i}": "value" for i in range(16)} if self.padding else {}

    def _run(
        self,
        tags: Mapping[str, Any],
        params: Mapping[str, str],
        metrics: Mapping[str, float],
        parent: Any = None,
    ) -> Any:
        from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunTag

        from search.tracking.facts import RunFacts

        self._now += 1000
        run_id = uuid.UUID(bytes=self._rng.bytes(16)).hex
        every = {f"ranksweep.{key}": str(value) for key, value in tags.items()}
        every |= {"ranksweep.token": run_id[::-1], "mlflow.runName": "a trial"}
        if parent is not None:
            every["mlflow.parentRunId"] = parent.run_id
        self.runs["runs"].append(
            {
                "run_uuid": run_id, "name": "a trial", "source_type": "UNKNOWN",
                "source_name": "", "entry_point_name": "", "user_id": "user",
                "status": "FINISHED", "start_time": self._now, "end_time": self._now + 500,
                "source_version": "", "lifecycle_stage": "active",
                "artifact_uri": f"file:///nowhere/{run_id}/artifacts",
                "experiment_id": self._experiment,
            }
        )  # fmt: skip
        self.runs["tags"] += [{"key": k, "value": v, "run_uuid": run_id} for k, v in every.items()]
        self.runs["params"] += [
            {"key": k, "value": v, "run_uuid": run_id} for k, v in params.items()
        ]
        self.runs["metrics"] += [
            {"key": key, "value": value, "timestamp": self._now, "step": 3, "is_nan": False,
             "run_uuid": run_id}
            for key, value in metrics.items()
        ]  # fmt: skip
        info = RunInfo(run_id, self._experiment, "user", "FINISHED", self._now, None, "active")
        data = RunData(
            [Metric(k, v, self._now, 3) for k, v in metrics.items()],
            [Param(k, v) for k, v in params.items()],
            [RunTag(k, v) for k, v in every.items()],
        )
        return RunFacts.of(Run(info, data))
