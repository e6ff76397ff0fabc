"""What a run says of itself: written within MLflow's limits, and read back by name."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from search.objective import Mode
from search.redaction import redacted_text
from spaces.plan import Plan
from trainables.tasks.collapse import is_collapsed
from trainables.training.lm_eval_settings import SCORE_PREFIX

if TYPE_CHECKING:
    from mlflow.entities import Param, Run


PREFIX = "ranksweep."
STATUS = PREFIX + "status"
TOKEN = PREFIX + "token"
PARENT = "mlflow.parentRunId"
NAME, NOTE = "mlflow.runName", "mlflow.note.content"
"""MLflow's own tags of what a run is called, and of its description, in Markdown."""
TEST_ROWS = "test_rows.safetensors"
"""Artifact of a confirmation: what it said of every test row."""
State = Literal["complete", "pruned", "failed", "stopped", "cancelled", "interrupted"]
MLFLOW_STATUS: Mapping[str, str] = {
    "complete": "FINISHED",
    "pruned": "KILLED",
    "stopped": "KILLED",
    "cancelled": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}

# What every run of a sweep says of itself, so that a query needs no second look at the sweep.
INHERITED = (
    "task",
    "task_fingerprint",
    "data_fingerprint",
    "base",
    "base_uri",
    "metric",
    "mode",
    "profile_key",
    "profile_of_task",
    "profile_of_base",
    "profile_of_base_uri",
    "profile_of_rows",
)
# What nobody looks for a run by: of a trial it is in one file, of a sweep and its profile in tags.
PROVENANCE = ("profile_run", "git_commit", "versions")
RECORD = "run.json"
"""Artifact of a trial: what its tags do not say of where it comes from."""
_PACKAGES = (
    "ranksweep",
    "torch",
    "transformers",
    "ray",
    "optuna",
    "deepspeed",
    "mlflow",
    "numpy",
    "lm_eval",
)

# Limits of MLflow's tracking API; what is longer it cuts with a warning, or refuses.
_PARAM_CHARACTERS = 6000
_TAG_CHARACTERS = 8000
_KEY_CHARACTERS = 250
ENTITIES_PER_BATCH = 100
METRICS_PER_BATCH = 900  # of 1000 entities, 100 of them params or tags
_LOOK = "look_"
STEP_LOSS = "step_loss"
"""Metric of a trial: its training loss within an epoch, by optimizer steps."""
NOT_IN_A_KEY = re.compile(r"[^\w\-. :/]")


@dataclass(frozen=True)
class Point:
    """One value of a metric; `at_ms` is when it was taken, in milliseconds of Unix time."""

    key: str
    value: float
    step: int
    at_ms: int


# How the tags are read that are no plain texts.
_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "number": int,
    "seed": int,
    "warm_from": int,
    "clone_of": int,
    "trials": int,
    "epoch": int,
    "head_params": int,
    "choice": json.loads,
    "features": json.loads,
    "collapsed": "true".__eq__,
}

# What older runs say in metrics, by the names that it had there, the newest first.
_WERE_METRICS: Mapping[str, tuple[str, ...]] = {
    "epoch": ("epochs", "epoch"),
    "head_params": ("head_params",),
}


@dataclass(frozen=True)
class RunFacts:
    """A run of ranksweep as MLflow has it: from `kind` on what its tags say, by their names."""

    run_id: str
    experiment_id: str
    parent: str | None
    """Run id of the sweep that it is part of."""
    is_open: bool
    """Whether MLflow takes it for running, whatever its `status` says."""
    started_ms: int
    """In milliseconds of Unix time, as `ended_ms`, which is None of an open run."""
    metrics: Mapping[str, float]
    ended_ms: int | None = None
    kind: str | None = None
    status: str | None = None
    sweep: str = ""
    task: str = ""
    task_fingerprint: str | None = None
    data_fingerprint: str | None = None
    """As `task_fingerprint`, without the metric; older runs do not say it."""
    base: str = ""
    base_uri: str = ""
    method: str = ""
    arm: str | None = None
    number: int | None = None
    seed: int | None = None
    repeat: str | None = None
    epoch: int = 0
    """Of a trial: how many epochs it has ended; 0 where it does not say."""
    head_params: int = 0
    """Of a trial that has ended: the numbers of the task's head."""
    collapsed: bool = False
    """Whether its last epoch has predicted one class for every row of dev."""
    asked_by: str | None = None
    """Of a trial that a user has asked for while the search went on: `enqueued` or `cloned`."""
    clone_of: int | None = None
    warm_from: int | None = None
    """Number of the trial whose trained weights it started from."""
    trials: int | None = None
    """Of a sweep: its `search.trials` at its last launch; what users asked for comes on top."""
    choice: Mapping[str, Any] | None = None
    features: Mapping[str, float] | None = None
    """Those of a trial's plan, by name; older runs do not say them."""
    metric: str | None = None
    mode: Mode | None = None
    profile_key: str | None = None
    plan_digest: str | None = None
    ended_by: str | None = None
    """Of a sweep: what has ended its search, such as `trials` or `stop_when`."""
    reason: str | None = None
    """Of a sweep: why its search ended before all trials were out."""
    error: str | None = None
    """Why a run has ended that is not complete."""
    git_commit: str | None = None
    """Of the ranksweep that has launched it, where it was a checkout."""
    versions: str | None = None
    """Package -> version as of its launch, as JSON."""
    token: str | None = None
    """What no other run has; of a sweep the mark that its folder has too."""
    host: str | None = None
    folder: str | None = None
    """Of a sweep: where it was last launched."""
    summary: str | None = None
    """Of a sweep: what queries over many sweeps need of it (search/queries/sweep_summary.py)."""
    published: str | None = None
    """Of a sweep: what a paper prints for it, its section `published` as JSON."""
    scheduled_by: str | None = None
    """Of a sweep: the schedule that has launched it last."""
    base_name: str | None = None
    """Of a sweep: what its base is a version of, such as a registered model; None where only its
    URI says."""
    lm_eval_digest: str | None = None
    """Of what lm-eval was asked for: a run's scores are of that, and a sweep's last launch asked
    for it."""

    @classmethod
    def of(cls, run: Run) -> RunFacts:
        """The facts of a run that MLflow's client has returned."""
        tags = without_prefix(run.data.tags)
        said = {
            field.name: _PARSERS.get(field.name, str)(tags[field.name])
            for field in fields(cls)
            if field.default is not MISSING and field.name in tags
        }
        for name, older in _WERE_METRICS.items():
            told = [run.data.metrics[each] for each in older if each in run.data.metrics]
            if told and name not in said:
                said[name] = int(told[0])
        said["collapsed"] = said.get("collapsed", False) or is_collapsed(run.data.metrics)
        return cls(
            run_id=run.info.run_id,
            experiment_id=run.info.experiment_id,
            parent=run.data.tags.get(PARENT),
            is_open=run.info.status == "RUNNING",
            started_ms=run.info.start_time or 0,
            metrics=run.data.metrics,
            ended_ms=run.info.end_time,
            **said,
        )


def without_prefix(tags: Mapping[str, str]) -> dict[str, str]:
    """Our own tags of a run, without `ranksweep.`."""
    return {k.removeprefix(PREFIX): v for k, v in tags.items() if k.startswith(PREFIX)}


@cache
def provenance() -> dict[str, str]:
    """The tags `git_commit` (where there is one) and `versions` (JSON) of this program."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    tags = {"versions": json.dumps(versions)}
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return tags
    return {**tags, "git_commit": commit}


def flattened(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level with dotted keys; empty mappings stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def choice_tag(choice: Mapping[str, Any]) -> str:
    """The tag `choice` of a trial's run: equal where the choices are."""
    return json.dumps(choice, sort_keys=True)


def of_members(metrics: Mapping[str, float], prefix: str = "") -> dict[str, float]:
    """Of a run's metrics those of a suite's members, "<member>/<metric>", that have a prefix.

    Those of the machine, which MLflow may log, and of lm-eval have a slash too.
    """
    return {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if "/" in name
        and name.startswith(prefix)
        and not name.startswith(("system/", SCORE_PREFIX))
    }


def plan_counts(plan: Plan) -> dict[str, float]:
    """The metrics of a plan: what must be stored, and what its largest stage trains."""
    return {
        "trainable_params": float(plan.trainable_params),
        "peak_trainable_params": float(plan.peak_trainable_params),
    }


def look_metrics(looks: Mapping[float, float]) -> dict[str, float]:
    """The metrics of cheap looks, share of the training rows -> value: `look_0.1` and so on."""
    return {f"{_LOOK}{share}": value for share, value in looks.items()}


def looks_in(metrics: Mapping[str, float]) -> dict[float, float]:
    """The cheap looks among a run's metrics, share of the training rows -> value, rising."""
    looks = {k.removeprefix(_LOOK): v for k, v in metrics.items() if k.startswith(_LOOK)}
    return dict(sorted((float(share), value) for share, value in looks.items()))


def now_ms() -> int:
    """Now, in milliseconds of Unix time."""
    return int(time.time() * 1000)


def at_step(metrics: Mapping[str, float], step: int) -> list[Point]:
    """Metrics as they are now."""
    now = now_ms()
    return [Point(key, float(value), step, now) for key, value in metrics.items()]


def run_params(params: Mapping[str, Any]) -> list[Param]:
    from mlflow.entities import Param

    entries = []
    for key, value in params.items():
        text = _text(value)
        # What does not fit is in the YAML artifact whole; MLflow would keep a torn piece.
        if len(text) < _PARAM_CHARACTERS and len(key) <= _KEY_CHARACTERS:
            entries.append(Param(NOT_IN_A_KEY.sub("_", key), text))
    return entries


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def tag_texts(tags: Mapping[str, Any] | None) -> dict[str, str]:
    """Tags as texts that MLflow takes whole; a missing value is no tag."""
    texts = {}
    for key, value in (tags or {}).items():
        if value is None:
            continue
        text = redacted_text(_text(value))
        texts[key] = text if len(text) < _TAG_CHARACTERS else text[: _TAG_CHARACTERS - 4] + "..."
    return texts


def without_credentials(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): without_credentials(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_credentials(each) for each in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redacted_text(str(value))
