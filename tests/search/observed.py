"""Trials on paper for the tests of what is told to MLflow, and what MLflow holds of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from search.launch.recorder import Recorder
from search.tracking.facts import now_ms
from search.tracking.journal import Journal
from search.tracking.relay import Relay
from search.tracking.tracker import Tracker
from search.tracking.weights import WeightFiles
from spaces.choice import Choice
from spaces.methods.registry import parse_choice
from spaces.plan import Plan
from spaces.planner import Planner
from tests.search.toy_search import TARGETS, toy_profile

PROFILE = toy_profile()
TAGS = {"task": "movie", "base": "b" * 64, "metric": "accuracy", "mode": "max"}


class Silent:
    """A view and kept weights that do nothing, and a searcher whose arms are its methods."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.run_ids: dict[int, str] = {}

    def message(self, text: str) -> None:
        self.said.append(text)

    def set_run_id(self, number: int, run_id: str) -> None:
        self.run_ids[number] = run_id

    def arm_of(self, choice: Choice) -> str:
        return choice.method

    def tags_of(self, number: int) -> dict[str, Any]:
        return {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


class Switched:
    """MLflow's client, which can be made to answer no call."""

    def __init__(self, client: Any, is_away: bool = False) -> None:
        self._client, self.is_away = client, is_away

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **keys: Any) -> Any:
            if self.is_away:
                raise MlflowException("connection refused")
            return getattr(self._client, name)(*arguments, **keys)

        return call


def choice_of(number: int) -> Choice:
    """A choice of its own for each trial."""
    method = ("lora", "taso", "joint")[number % 3]
    return parse_choice({"method": method, "learning_rate": 1e-4 * (number + 1)})


def plan_of(choice: Mapping[str, Any]) -> Plan:
    return Planner(TARGETS, PROFILE).plan(choice)


class Watched:
    """A recorder with its journal and its relay, as a launch has them, and trials for it."""

    def __init__(
        self, folder: Path, tracker: Tracker, sweep_run_id: str, pause_s: float = 0.05
    ) -> None:
        self.silent = Silent()
        self.journal = Journal(folder / "journal.db")
        self.confirmed = WeightFiles(folder / "confirmed", "confirmation")
        self.relay = Relay(
            self.journal,
            tracker,
            sweep_run_id,
            plan_of=plan_of,
            say=self.silent.message,
            on_run=self.silent.set_run_id,
            first_pause_s=pause_s,
            longest_pause_s=pause_s,
        )
        config: Any = SimpleNamespace(
            search=SimpleNamespace(mode="max", metric="accuracy"),
            train=SimpleNamespace(epochs=2),
            cluster=SimpleNamespace(groups=1),
        )
        silent: Any = self.silent
        self.recorder = Recorder(config, lambda: None, self.relay, silent, silent, silent)

    def steps(self, number: int) -> list[Callable[[], None]]:
        """What befalls a trial: two epochs and an end, one and stopped, or a failure at once."""
        recorder, choice = self.recorder, choice_of(number)

        def start() -> None:
            recorder.trial_started(number, choice, plan_of(choice.as_dict()))
            recorder.trial_began(number, now_ms())

        epochs = [
            lambda e=e: recorder.trial_epoch(number, e, metrics_of(number, e)) for e in (1, 2)
        ]
        last = metrics_of(number, 2) | {"head_params": 34}
        ends: list[Callable[[], None]] = [
            lambda: recorder.trial_ended(number, "complete", last, None),
            lambda: recorder.trial_ended(number, "pruned", metrics_of(number, 1), "stopped"),
            lambda: recorder.trial_ended(number, "failed", {}, "RuntimeError: out of memory"),
        ]
        kind = number % 3
        return [start, *epochs[: 2 - kind], ends[kind]]

    def close(self, patience_s: float = 30.0) -> int:
        left = self.relay.close(patience_s)
        self.journal.close()
        return left


def metrics_of(number: int, epoch: int) -> dict[str, float]:
    loss = float("nan") if number % 3 == 1 else 1.0 / epoch
    return {"accuracy": number / 100 + epoch / 1000, "dev_loss": loss, "epoch": epoch}


def held(uri: str, tracker: Tracker, sweep_run_id: str, folder: Path) -> dict[str, Any]:
    """All that MLflow holds of a sweep's trials and, by number and seed, of their confirmations.

    Ids and times are left out; nothing stands twice.
    """
    client = MlflowClient(tracking_uri=uri)
    trials: dict[str, Any] = {}
    for child in tracker.children(sweep_run_id):
        run = client.get_run(child.run_id)
        run_id, data = run.info.run_id, run.data
        seed = data.tags.get("ranksweep.seed")
        number = data.tags["ranksweep.number"] + ("" if seed is None else f" seed {seed}")
        assert number not in trials, f"trial {number} has two runs"
        files = {}
        for file in client.list_artifacts(run_id):
            path = client.download_artifacts(run_id, file.path, str(folder))
            files[file.path] = Path(path).read_bytes()
        own = ("ranksweep.token", "mlflow.parentRunId")
        trials[number] = {
            "status": run.info.status,
            "ended": run.info.end_time is not None and run.info.end_time >= run.info.start_time,
            "tags": {key: value for key, value in data.tags.items() if key not in own},
            "params": data.params,
            "metrics": {
                key: sorted(
                    (point.step, repr(point.value))
                    for point in client.get_metric_history(run_id, key)
                )
                for key in data.metrics
            },
            "files": files,
        }
    return trials
