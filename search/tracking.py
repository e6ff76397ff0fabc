"""The record of sweeps, profiles and trials in MLflow, through explicit run ids.

One run per sweep, one child run per trial (MLflow's parent/child tags), one run per profile, which
all trials on it share. `ranksweep.status` is written last of all: a run without
`ranksweep.status=complete` may be half written and is not to be ranked.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import unquote

import yaml

from search import paths
from spaces.errors import ConfigError, TrackingError, nearest
from trainables.private import private_files, redacted, redacted_text

if TYPE_CHECKING:
    from mlflow.entities import Param, Run
    from mlflow.tracking import MlflowClient

    from spaces.plan import Plan

PREFIX = "ranksweep."
STATUS = PREFIX + "status"
TOKEN = PREFIX + "token"
PARENT = "mlflow.parentRunId"

State = Literal["complete", "pruned", "failed", "cancelled", "interrupted"]

_ENDED: Mapping[str, str] = {
    "complete": "FINISHED",
    "pruned": "KILLED",
    "cancelled": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}

# What every run of a sweep says of itself, so that a query needs no second look at the sweep.
_INHERITED = (
    "task",
    "task_fingerprint",
    "base",
    "base_uri",
    "metric",
    "mode",
    "profile_key",
    "profile_run",
    "profile_of_task",
    "profile_of_base",
    "profile_of_base_uri",
    "profile_of_rows",
    "git_commit",
    "versions",
)

_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
_PACKAGES = ("ranksweep", "torch", "transformers", "ray", "optuna", "deepspeed", "mlflow", "numpy")

# Limits of MLflow's tracking API; what is longer it cuts with a warning, or refuses.
_PARAM_CHARACTERS = 6000
_TAG_CHARACTERS = 8000
_KEY_CHARACTERS = 250
_ENTITIES_PER_BATCH = 100
_METRICS_PER_BATCH = 900  # of 1000 entities, 100 of them params or tags

# How long a server that is away is waited for, and the longest pause between two tries.
_PATIENCE_S = 60.0
_LONGEST_PAUSE_S = 8.0

_PAGE = 1000
_NOT_IN_A_KEY = re.compile(r"[^\w\-. :/]")

# What MLflow itself says of a run that is gone or a value that it does not take; a proxy in front
# of a server that is away says other things.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")

Result = TypeVar("Result")


class RefusedError(TrackingError):
    """MLflow has answered, and does not take what it was given."""


@dataclass(frozen=True)
class Point:
    """One value of a metric; `at_ms` is when it was taken, in milliseconds of Unix time."""

    key: str
    value: float
    step: int
    at_ms: int


class Tracker:
    """Writes the runs of sweeps into one MLflow experiment.

    `uri` is `sqlite:///file.db` (relative to the current directory, or `sqlite:////file.db`) or any
    MLflow server; the experiment is created when it is not there. For a local SQLite database its
    artifacts lie beside it, under `mlartifacts`. Safe to use from several threads.

    Raises:
        ConfigError: a URI that MLflow cannot track to.
        TrackingError: the server or the database cannot be reached, or refuses a write.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = absolute_uri(uri)
        """The tracking URI, absolute for a local database. It may hold credentials."""
        self.experiment = experiment
        self._client = connect(self.uri)
        self.patience = _PATIENCE_S
        self._experiment_id = self._call(self._open_experiment)
        self._lock = threading.Lock()
        self._sweeps: dict[str, dict[str, str]] = {}
        self._epochs: dict[str, int] = {}

    @property
    def experiment_id(self) -> str:
        """MLflow's id of the experiment."""
        return self._experiment_id

    def impatient(self) -> Tracker:
        """The same tracker for one who tries again himself: its calls fail at the first error."""
        other = copy(self)
        other.patience = 0.0
        return other

    # Sweeps -----------------------------------------------------------------------------------

    def start_sweep(
        self, name: str, config: Mapping[str, Any], tags: Mapping[str, Any] | None = None
    ) -> str:
        """Open the run of a sweep; returns its run id.

        `config` is the resolved sweep: its scalars become params, the whole is kept as
        `sweep.yaml`, both without the credentials of any URI in it. Tags are given without the
        prefix `ranksweep.`; the trials inherit task, base, base_uri, metric, mode, profile_key
        and profile_run.
        """
        shown = _without_credentials(dict(config))
        own = {**provenance(), **_texts(tags), "sweep": name}
        run_id = self._create_run(name, "sweep", own, parent=None)
        self._sweeps[run_id] = own
        self.log(run_id, params=flattened(shown))
        self._log_texts(run_id, {"sweep.yaml": yaml.safe_dump(shown, sort_keys=False)})
        return run_id

    def find_sweep(self, name: str) -> str | None:
        """The run id of the newest sweep of this name in the experiment; None without one."""
        runs = self._search({"kind": "sweep", "sweep": name})
        return runs[0].info.run_id if runs else None

    def resume_sweep(self, sweep_run_id: str) -> list[str]:
        """Open the run of a sweep again and close the trials that its last launch left open.

        Returns the run ids of those trials.
        """
        closed = self.close_interrupted(sweep_run_id)
        self._call(lambda: self._client.update_run(sweep_run_id, status="RUNNING"))
        self.set_tags(sweep_run_id, {"status": "running"})
        return closed

    def close_interrupted(self, sweep_run_id: str) -> list[str]:
        """Mark the children that nobody writes any more as killed, with status `interrupted`.

        Returns their run ids. For a sweep whose launch is known to be dead.
        """
        left = [
            run.info.run_id
            for run in self.children(sweep_run_id)
            if run.info.status == "RUNNING" or run.data.tags.get(STATUS, "running") == "running"
        ]
        for run_id in left:
            self.end(run_id, "interrupted")
        return left

    def children(self, sweep_run_id: str) -> list[Run]:
        """All runs whose parent is this sweep, newest first."""
        return self._search({}, parent=sweep_run_id)

    def finish_sweep(
        self,
        run_id: str,
        state: State = "complete",
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, Any] | None = None,
        error: str | None = None,
    ) -> None:
        """Close the run of a sweep."""
        self._finish(run_id, state, metrics, tags, error)

    # Profiles ---------------------------------------------------------------------------------

    def find_profile(self, key: str) -> str | None:
        """The run id of the complete profile of this key in the experiment; None without one."""
        runs = self._search({"kind": "profile", "profile_key": key, "status": "complete"})
        return runs[0].info.run_id if runs else None

    def start_profile(
        self,
        sweep_run_id: str | None,
        key: str,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> str:
        """The run of a profile: the complete one of this key in the experiment, else a new one.

        A new run stays open until `finish_profile`. Either way the sweep and its later trials point
        to it with the tags `profile_key` and `profile_run`. Without a sweep (None) it stands alone.
        """
        run_id = self.find_profile(key)
        if run_id is None:
            above = provenance() if sweep_run_id is None else self._sweep_tags(sweep_run_id)
            own = {**self._inherited(above), **_texts(tags), "profile_key": key}
            own.pop("profile_run", None)
            run_id = self._create_run(f"profile {key[:12]}", "profile", own, parent=sweep_run_id)
            self.log(
                run_id, params=flattened(dict(params or {})), metrics=_at_step(metrics or {}, 0)
            )
        if sweep_run_id is not None:
            links = {"profile_key": key, "profile_run": run_id}
            self.set_tags(sweep_run_id, links)
            self._sweep_tags(sweep_run_id).update(links)
        return run_id

    def finish_profile(
        self,
        run_id: str,
        state: State = "complete",
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, Any] | None = None,
        error: str | None = None,
    ) -> None:
        """Close the run of a profile."""
        self._finish(run_id, state, metrics, tags, error)

    # Trials -----------------------------------------------------------------------------------

    def start_trial(
        self,
        sweep_run_id: str,
        number: int,
        choice: Mapping[str, Any],
        plan: Plan | None = None,
        tags: Mapping[str, Any] | None = None,
        *,
        kind: str = "trial",
    ) -> str:
        """Open the run of a trial as a child of its sweep; returns its run id.

        The choice becomes params (`partition.threshold` for a nested key), the tag `choice` that
        queries read back, and `choice.yaml`; the plan becomes `plan.safetensors`, `plan.json`, the
        tag `plan_digest` and the metrics `trainable_params` and `peak_trainable_params`. `kind`
        other than `trial` keeps a run (a confirmation) out of the ranking.
        """
        own = dict(tags or {})
        counts: dict[str, float] = {}
        if plan is not None:
            own["plan_digest"] = plan.digest
            counts = plan_counts(plan)
        run_id = self.open_trial(sweep_run_id, number, choice, own, kind=kind)
        self.log(run_id, params=flattened(choice), metrics=_at_step(counts, 0))
        self.log_plan(run_id, choice, plan)
        return run_id

    def open_trial(
        self,
        sweep_run_id: str,
        number: int,
        choice: Mapping[str, Any],
        tags: Mapping[str, Any],
        *,
        kind: str = "trial",
        token: str | None = None,
        started_ms: int | None = None,
        in_doubt: bool = False,
    ) -> str:
        """Create the run of a trial with all its tags, and nothing else; returns its run id.

        `token` is a text that no other run has. With `in_doubt` a run that carries it is looked for
        first: an earlier call may have created it and never had its answer.
        """
        method = str(choice.get("method", "unknown"))
        sweep = self._sweep_tags(sweep_run_id)
        own = {
            **self._inherited(sweep),
            **_texts(tags),
            "sweep": sweep.get("sweep", ""),
            "method": method,
            "number": str(number),
            "choice": choice_tag(choice),
        }
        name = f"{kind} {number} {method}"
        return self._create_run(name, kind, own, sweep_run_id, token, started_ms, in_doubt)

    def log_plan(self, run_id: str, choice: Mapping[str, Any], plan: Plan | None) -> None:
        """Keep `choice.yaml` and, of a plan, `plan.safetensors` and `plan.json`."""
        with tempfile.TemporaryDirectory(prefix="ranksweep-") as folder:
            files = Path(folder)
            (files / "choice.yaml").write_text(yaml.safe_dump(dict(choice), sort_keys=False))
            if plan is not None:
                plan.write(files / "plan.safetensors")
                (files / "plan.json").write_text(json.dumps(plan.summary(), indent=2))
            self._call(lambda: self._client.log_artifacts(run_id, folder))

    def delete_doubles(self, run_id: str, token: str) -> None:
        """Delete every other run that carries the token of this one.

        A server that hung may have created a run long after its caller had given up.
        """
        for run in self._search({"token": token}):
            if run.info.run_id != run_id:
                self._call(partial(self._client.delete_run, run.info.run_id))

    def log_epoch(self, run_id: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log one epoch's metrics (1, 2, ...) at that step, in one batch, and `epoch` with them."""
        with self._lock:
            self._epochs[run_id] = epoch
        self.log(run_id, metrics=_at_step({**metrics, "epoch": float(epoch)}, epoch))

    def finish_trial(
        self,
        run_id: str,
        state: State,
        metrics: Mapping[str, float] | None = None,
        error: str | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Close the run of a trial: metrics first, then MLflow's own status, then `status`."""
        self._finish(run_id, state, metrics, tags, error)

    # Any run ----------------------------------------------------------------------------------

    def set_tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        """Set tags, given without the prefix `ranksweep.`."""
        self.log(run_id, tags=tags)

    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Iterable[Point] = (),
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Log params, metrics and tags together, in one call where they fit into one.

        A point that the run has already, with the same step, value and time, is not logged again.
        """
        from mlflow.entities import Metric, RunTag

        written = _params(params or {})
        named = [RunTag(PREFIX + key, value) for key, value in _texts(tags).items()]
        points = [
            Metric(_NOT_IN_A_KEY.sub("_", point.key), point.value, point.at_ms, point.step)
            for point in metrics
        ]
        while written or named or points:
            room = max(0, _ENTITIES_PER_BATCH - len(written))
            batch = {
                "params": written[:_ENTITIES_PER_BATCH],
                "tags": named[:room],
                "metrics": points[:_METRICS_PER_BATCH],
            }
            self._call(partial(self._client.log_batch, run_id, **batch))
            written, named = written[_ENTITIES_PER_BATCH:], named[room:]
            points = points[_METRICS_PER_BATCH:]

    def end(self, run_id: str, state: State, ended_ms: int | None = None) -> None:
        """Give a run MLflow's own status and then, last of all, `status`."""
        self._call(lambda: self._client.set_terminated(run_id, _ENDED[state], ended_ms))
        self._call(lambda: self._client.set_tag(run_id, STATUS, state))

    def log_file(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Keep a local file as an artifact of a run."""
        self._call(lambda: self._client.log_artifact(run_id, str(path), folder))

    def run(self, run_id: str) -> Run:
        """The run as MLflow has it now."""
        return self._call(lambda: self._client.get_run(run_id))

    # Inside -----------------------------------------------------------------------------------

    def _open_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            folder = sqlite_file(self.uri)
            location = None if folder is None else paths.artifacts_beside(folder).as_uri()
            try:
                return str(self._client.create_experiment(self.experiment, location))
            except MlflowException as error:
                # Another launch may have created it since.
                found = self._client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise error
        if found.lifecycle_stage != "active":
            raise ConfigError(
                f"tracking.experiment: {self.experiment!r} is deleted in MLflow; restore it "
                f"(mlflow experiments restore -x {found.experiment_id}) or name another"
            )
        return str(found.experiment_id)

    def _create_run(
        self,
        name: str,
        kind: str,
        tags: Mapping[str, str],
        parent: str | None,
        token: str | None = None,
        started_ms: int | None = None,
        in_doubt: bool = False,
    ) -> str:
        token = token or uuid.uuid4().hex
        every = {PREFIX + key: value for key, value in tags.items()}
        every |= {PREFIX + "kind": kind, STATUS: "running", TOKEN: token}
        if parent is not None:
            every[PARENT] = parent

        def create() -> str:
            nonlocal in_doubt
            # An answer that was lost says nothing of the run: it may have been created.
            if in_doubt and (found := self._search({"token": token})):
                return str(found[-1].info.run_id)
            in_doubt = True
            run = self._client.create_run(self._experiment_id, started_ms, every, name)
            return str(run.info.run_id)

        return self._call(create)

    def _finish(
        self,
        run_id: str,
        state: State,
        metrics: Mapping[str, float] | None,
        tags: Mapping[str, Any] | None,
        error: str | None,
    ) -> None:
        if state not in _ENDED:
            raise ValueError(f"no run ends as {state!r}; {nearest(state, _ENDED)}")
        last = dict(tags or {})
        if error is not None:
            last["error"] = error
        step = self._last_epoch(run_id) if metrics else 0
        self.log(run_id, metrics=_at_step(metrics or {}, step), tags=last)
        self.end(run_id, state)
        with self._lock:
            self._epochs.pop(run_id, None)

    def _last_epoch(self, run_id: str) -> int:
        # MLflow's newest value of a metric is the one of the highest step: what is logged at the
        # end must not stand behind the last epoch.
        with self._lock:
            known = self._epochs.get(run_id)
        if known is not None:
            return known
        return int(self.run(run_id).data.metrics.get("epoch", 0))

    def _sweep_tags(self, sweep_run_id: str) -> dict[str, str]:
        """The sweep's tags without their prefix, from memory where this tracker wrote them."""
        with self._lock:
            known = self._sweeps.get(sweep_run_id)
        if known is None:
            tags = self.run(sweep_run_id).data.tags
            known = {k.removeprefix(PREFIX): v for k, v in tags.items() if k.startswith(PREFIX)}
            with self._lock:
                known = self._sweeps.setdefault(sweep_run_id, known)
        return known

    @staticmethod
    def _inherited(sweep: Mapping[str, str]) -> dict[str, str]:
        return {key: sweep[key] for key in _INHERITED if key in sweep}

    def _search(self, tags: Mapping[str, str], parent: str | None = None) -> list[Run]:
        return search_runs(self._client, self.uri, [self._experiment_id], tags, parent)

    def _log_texts(self, run_id: str, texts: Mapping[str, str]) -> None:
        with tempfile.TemporaryDirectory(prefix="ranksweep-") as folder:
            for name, text in texts.items():
                (Path(folder) / name).write_text(text)
            self._call(lambda: self._client.log_artifacts(run_id, folder))

    def _call(self, work: Callable[[], Result]) -> Result:
        return call(self.uri, work, self.patience)


# Reaching MLflow ------------------------------------------------------------------------------


def absolute_uri(uri: str) -> str:
    """A tracking URI that means the same from every directory.

    Raises:
        ConfigError: MLflow cannot track there (its file store is gone).
    """
    scheme, separator, _ = uri.partition(":")
    dialect = scheme.split("+")[0]
    if uri == "databricks":
        return uri
    if not separator or dialect == "file":
        raise ConfigError(
            f"tracking.uri: {redacted(uri)!r} is a folder, which MLflow no longer tracks to; "
            "use sqlite:///FILE.db or the URI of a server"
        )
    if dialect not in _SCHEMES:
        raise ConfigError(
            f"tracking.uri: MLflow cannot track to '{scheme}:'; {nearest(dialect, _SCHEMES)}"
        )
    if dialect != "sqlite":
        return uri
    file = sqlite_file(uri)
    if file is None:
        raise ConfigError(
            f"tracking.uri: {uri} names no file; use sqlite:///FILE.db or sqlite:////dir/FILE.db"
        )
    return f"sqlite:///{file}"


def sqlite_file(uri: str) -> Path | None:
    """The absolute file of a SQLite tracking URI; None for every other URI."""
    scheme, separator, rest = uri.partition(":///")
    if not separator or scheme.split("+")[0] != "sqlite" or rest in ("", ":memory:"):
        return None
    return Path(unquote(rest.partition("?")[0])).expanduser().absolute()


def connect(uri: str, *, must_exist: bool = False) -> MlflowClient:
    """A client that has heard from its server, or opened its database, once.

    `must_exist` refuses to create a SQLite database, as a query should.

    Raises:
        ConfigError: a URI that MLflow cannot track to.
        TrackingError: no answer within seconds.
    """
    uri = absolute_uri(uri)
    file = sqlite_file(uri)
    if must_exist and file is not None and not file.exists():
        raise TrackingError(
            f"tracking: there is no database {file}; launch a sweep first, or name another with "
            "--tracking"
        )
    # MLflow reports its use to its makers unless told not to; a sweep's machine may not want that.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Its own client would try a create_run again whose answer was lost, and make a second run:
    # `call` tries again instead, and whoever creates a run looks first.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    # One request less at the end of a run, whose address would go to stdout.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow.tracking import MlflowClient

    _silence()

    def open_client() -> MlflowClient:
        with _brief_requests() if file is None else _opening(file):
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
        return client

    return call(uri, open_client, patience=10.0)


def call(uri: str, work: Callable[[], Result], patience: float = _PATIENCE_S) -> Result:
    """Do one piece of work with MLflow.

    A local database that is locked or being created by another process is tried again for half a
    minute, a server that does not answer, or answers that it cannot now, for `patience` seconds: a
    sweep of hours must outlast a server's restart.

    Raises:
        TrackingError: with the reason and a remedy on one line, without credentials;
            `RefusedError` where another try would be refused too.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    local = sqlite_file(uri) is not None
    give_up = time.monotonic() + (30 if local else patience)
    pause = 0.05 if local else 1.0
    while True:
        try:
            return work()
        except (MlflowException, SQLAlchemyError, OSError) as error:
            text = str(error)
            busy = "database is locked" in text or "already exists" in text
            refused = getattr(error, "error_code", None) in _REFUSALS
            # A write that met a lock was rolled back whole, so that it can be done again.
            again = busy if local else not refused
            if again and time.monotonic() + pause < give_up:
                time.sleep(pause)
                pause = min(2 * pause, 2.0 if local else _LONGEST_PAUSE_S)
                continue
            remedy = (
                "check the file, its folder's permissions and the free space"
                if local
                else "check that the server runs and that --tracking names it"
            )
            kind = RefusedError if refused else TrackingError
            raise kind(f"tracking: {redacted(uri)}: {_one_line(text, uri)}; {remedy}") from error


def search_runs(
    client: MlflowClient,
    uri: str,
    experiment_ids: Sequence[str],
    tags: Mapping[str, str],
    parent: str | None = None,
) -> list[Run]:
    """All active runs that carry these tags (without the prefix), newest first, page by page."""
    wanted = {PREFIX + key: value for key, value in tags.items()}
    if parent is not None:
        wanted[PARENT] = parent
    # MLflow's filter language cannot hold every text; what it cannot hold is compared here.
    clauses = [f"tags.`{k}` = '{v}'" for k, v in wanted.items() if not re.search(r"['\"\\`]", v)]
    found: list[Run] = []
    token: str | None = None
    while True:
        page = call(
            uri,
            partial(
                client.search_runs,
                list(experiment_ids),
                " and ".join(clauses),
                max_results=_PAGE,
                page_token=token,
            ),
        )
        found += [run for run in page if all(run.data.tags.get(k) == v for k, v in wanted.items())]
        token = page.token
        if not token:
            return found


@contextmanager
def _brief_requests() -> Iterator[None]:
    """While open, MLflow's client gives up on a silent server within seconds."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ[name]
    os.environ[name] = "10"
    try:
        yield
    finally:
        os.environ[name] = before


@contextmanager
def _opening(file: Path) -> Iterator[None]:
    """While open, no other process of this machine creates the same database.

    MLflow creates its tables one by one, and two processes doing so leave neither with a database.
    """
    with private_files():
        file.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(file.parent, os.W_OK):
            yield
            return
        with open(file.with_name(file.name + ".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _silence() -> None:
    """Keep MLflow's and alembic's progress out of a command's output; warnings still show."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It logs the traceback of every error that it raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def _one_line(text: str, uri: str) -> str:
    """The first line of an error of MLflow or SQLAlchemy, cut to be read, without credentials."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = redacted_text(lines[0]) if lines else "no reason given"
    if refused := re.search(r"\[Errno -?\d+\] ([\w ]+)", line):  # at the end of a long story
        return refused.group(1)
    authority = uri.partition("://")[2].rpartition("@")[0]
    for secret in authority.split(":"):
        if secret:
            line = line.replace(secret, "***")
    return line if len(line) <= 300 else line[:297] + "..."


# What a run says ------------------------------------------------------------------------------


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


def plan_counts(plan: Plan) -> dict[str, float]:
    """The metrics of a plan: what must be stored, and what its largest stage trains."""
    return {
        "trainable_params": float(plan.trainable_params),
        "peak_trainable_params": float(plan.peak_trainable_params),
    }


def _at_step(metrics: Mapping[str, float], step: int) -> list[Point]:
    now = int(time.time() * 1000)
    return [Point(key, float(value), step, now) for key, value in metrics.items()]


def _params(params: Mapping[str, Any]) -> list[Param]:
    from mlflow.entities import Param

    entries = []
    for key, value in params.items():
        text = _param_text(value)
        # What does not fit is in the YAML artifact whole; MLflow would keep a torn piece.
        if len(text) < _PARAM_CHARACTERS and len(key) <= _KEY_CHARACTERS:
            entries.append(Param(_NOT_IN_A_KEY.sub("_", key), text))
    return entries


def _param_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _texts(tags: Mapping[str, Any] | None) -> dict[str, str]:
    """Tags as texts that MLflow takes whole; a missing value is no tag."""
    texts = {}
    for key, value in (tags or {}).items():
        if value is None:
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        text = redacted_text(text)
        texts[key] = text if len(text) < _TAG_CHARACTERS else text[: _TAG_CHARACTERS - 4] + "..."
    return texts


def _without_credentials(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_credentials(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_credentials(each) for each in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redacted_text(str(value))
