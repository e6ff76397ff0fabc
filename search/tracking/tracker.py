"""The record of sweeps, profiles and trials in MLflow, through explicit run ids.

One run per sweep, one child run per trial (MLflow's parent/child tags), one run per profile, which
all trials on it share. `ranksweep.status` is written last of all: a run without
`ranksweep.status=complete` may be half written and is not to be ranked.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from search import paths
from search.redaction import redacted_text
from search.tracking.artifacts import check_artifacts
from search.tracking.datasets import DatasetFacts
from search.tracking.facts import (
    ENTITIES_PER_BATCH,
    INHERITED,
    METRICS_PER_BATCH,
    MLFLOW_STATUS,
    NAME,
    NOT_IN_A_KEY,
    NOTE,
    PARENT,
    PREFIX,
    PROVENANCE,
    RECORD,
    STATUS,
    TEST_ROWS,
    TOKEN,
    Point,
    RunFacts,
    State,
    at_step,
    choice_tag,
    flattened,
    provenance,
    run_params,
    tag_texts,
    without_credentials,
    without_prefix,
)
from search.tracking.mlflow import (
    PATIENCE_S,
    RefusedError,
    Result,
    absolute_uri,
    call,
    connect,
    search_runs,
    sqlite_file,
)
from search.tracking.run_names import profile_name, trial_name
from search.tracking.ui import VIEW, view_made_at
from spaces.errors import ConfigError
from spaces.plan import Plan

if TYPE_CHECKING:
    from mlflow.entities import Run


_NOTE_CHARACTERS = 7900  # of a tag's 8000
_RUN_ID = re.compile(r"[0-9a-f]{32}")


class Tracker:
    """Writes the runs of sweeps into one MLflow experiment.

    `uri` is `sqlite:///file.db` (relative to the current directory, or `sqlite:////file.db`) or any
    MLflow server; the experiment is created when it is not there. For a local SQLite database its
    artifacts lie beside it, under `mlartifacts`. Safe to use from several threads. With
    `writes_files` false the tracker may be of an experiment whose artifacts cannot be reached.
    `tags` are a user's own, by their whole names, on every run that it makes.

    Raises:
        ConfigError: a URI that MLflow cannot track to, or artifacts that are elsewhere.
        TrackingError: the server or the database cannot be reached, or refuses a write.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        writes_files: bool = True,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.uri = absolute_uri(uri)
        """The tracking URI, absolute for a local database. It may hold credentials."""
        self.experiment = experiment
        self._own_tags = tag_texts(tags)
        self.client = connect(self.uri)
        self.patience = PATIENCE_S
        self.experiment_id = self._call(partial(self._open_experiment, writes_files))
        """MLflow's id of the experiment."""
        self._lock = threading.Lock()
        self._sweeps: dict[str, dict[str, str]] = {}

    def impatient(self) -> Tracker:
        """The same tracker for one who tries again himself: its calls fail at the first error."""
        other = copy(self)
        other.patience = 0.0
        return other

    # Sweeps -----------------------------------------------------------------------------------

    def start_sweep(
        self,
        name: str,
        config: Mapping[str, Any],
        tags: Mapping[str, Any] | None = None,
        mark: str | None = None,
    ) -> str:
        """Open the run of a sweep; returns its run id. `mark` is what `find_sweep` knows it by.

        `config` is the resolved sweep: its scalars become params, the whole is kept as
        `sweep.yaml`, both without the credentials of any URI in it. Tags are given without the
        prefix `ranksweep.`; the trials inherit task, base, base_uri, metric, mode, profile_key
        and profile_run.
        """
        shown = without_credentials(dict(config))
        own = {**provenance(), **tag_texts(tags), "sweep": name}
        run_id = self._create_run(name, "sweep", own, parent=None, token=mark)
        self._sweeps[run_id] = own
        self.log(run_id, params=flattened(shown))
        self._log_files(run_id, {"sweep.yaml": yaml.safe_dump(shown, sort_keys=False)})
        return run_id

    def log_task(self, sweep_run_id: str, told: Mapping[str, Any]) -> None:
        """Keep `task.json`: what was told of the sweep's rows."""
        text = json.dumps(told, indent=2, ensure_ascii=False)
        self._log_files(sweep_run_id, {"task.json": text})

    def describe(self, run_id: str, markdown: str) -> None:
        """Set the description that MLflow's UI shows above a run, in place of one of before."""
        text = redacted_text(markdown)
        text = text if len(text) <= _NOTE_CHARACTERS else text[:_NOTE_CHARACTERS] + "…"
        self._call(lambda: self.client.set_tag(run_id, NOTE, text))

    def share_view(self, key: str, view: str, at_most: int = 30) -> None:
        """Keep a shared view of the experiment's runs (search/tracking/ui.py) under its key.

        Beyond `at_most` of those that are named so the oldest go: each is sent with the experiment.
        """
        own = f"{VIEW}{key}"
        self._call(lambda: self.client.set_experiment_tag(self.experiment_id, own, view))
        tags = self._call(lambda: self.client.get_experiment(self.experiment_id)).tags
        kept = sorted(
            (view_made_at(text), tag)
            for tag, text in tags.items()
            if tag.startswith(VIEW) and _RUN_ID.fullmatch(tag.removeprefix(VIEW))
        )
        for _, tag in kept[: max(0, len(kept) - at_most)]:
            if tag != own:
                self._call(partial(self.client.delete_experiment_tag, self.experiment_id, tag))

    def log_datasets(self, run_id: str, datasets: Iterable[DatasetFacts]) -> None:
        """Log what a run was trained and measured on; what it has already stays."""
        inputs = [each.as_input() for each in datasets]
        self._call(lambda: self.client.log_inputs(run_id, datasets=inputs))

    def files_in(self, run_id: str, folder: str) -> list[str]:
        """The paths of the artifacts of a run in a folder of them, sorted."""
        found = self._call(lambda: self.client.list_artifacts(run_id, folder))
        return sorted(each.path for each in found if not each.is_dir)

    def find_sweep(self, name: str, mark: str | None = None) -> RunFacts | None:
        """The newest run of a sweep of this name, and mark, in the experiment; None without one."""
        marked = {} if mark is None else {"token": mark}
        return next(iter(self._search({"kind": "sweep", "sweep": name, **marked})), None)

    def resume_sweep(self, sweep_run_id: str) -> list[str]:
        """Open the run of a sweep again and close the trials that its last launch left open.

        Returns the run ids of those trials. What the last launch ended with is no longer said.
        """
        closed = self.close_interrupted(sweep_run_id)
        for key, value in self._own_tags.items():
            self._call(partial(self.client.set_tag, sweep_run_id, key, value))
        self._call(lambda: self.client.update_run(sweep_run_id, status="RUNNING"))
        self.log(sweep_run_id, tags={"status": "running"})
        told = self.run(sweep_run_id).data.tags
        for tag in (PREFIX + name for name in ("error", "ended_by", "reason", "summary")):
            if tag in told:
                self._call(partial(self.client.delete_tag, sweep_run_id, tag))
        return closed

    def close_interrupted(self, sweep_run_id: str) -> list[str]:
        """Mark the children that nobody writes any more as killed, with status `interrupted`.

        Returns their run ids. For a sweep whose launch is known to be dead.
        """
        left = [
            run.run_id
            for run in self.children(sweep_run_id)
            if run.is_open or run.status in (None, "running")
        ]
        for run_id in left:
            self.end(run_id, "interrupted")
        return left

    def children(self, sweep_run_id: str) -> list[RunFacts]:
        """All runs whose parent is this sweep, newest first."""
        return self._search({}, parent=sweep_run_id)

    # Profiles ---------------------------------------------------------------------------------

    def find_profile(self, key: str) -> str | None:
        """The run id of the complete profile of this key in the experiment; None without one."""
        runs = self._search({"kind": "profile", "profile_key": key, "status": "complete"})
        return runs[0].run_id if runs else None

    def start_profile(
        self,
        sweep_run_id: str | None,
        key: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> str:
        """The run of a profile: the complete one of this key in the experiment, else a new one.

        A new run stays open until `end`. Either way the sweep and its later trials point to it with
        the tags `profile_key` and `profile_run`. Without a sweep (None) it stands alone.
        """
        run_id = self.find_profile(key)
        if run_id is None:
            above = provenance() if sweep_run_id is None else self._sweep_tags(sweep_run_id)
            where = {name: above[name] for name in PROVENANCE if name in above}
            own = {**self._inherited(above), **where, **tag_texts(tags), "profile_key": key}
            own.pop("profile_run", None)
            name = profile_name(own.get("task"), own.get("base_uri"), key)
            run_id = self._create_run(name, "profile", own, parent=sweep_run_id)
            self.log(run_id, params=flattened(params or {}))
        if sweep_run_id is not None:
            links = {"profile_key": key, "profile_run": run_id}
            self.log(sweep_run_id, tags=links)
            self._sweep_tags(sweep_run_id).update(links)
        return run_id

    # Trials, for the relay --------------------------------------------------------------------

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

        `kind` other than `trial` keeps a run (a confirmation) out of the ranking. `token` is a text
        that no other run has. With `in_doubt` a run that carries it is looked for first: an earlier
        call may have created it and never had its answer.
        """
        method = str(choice.get("method", "unknown"))
        sweep = self._sweep_tags(sweep_run_id)
        own = {
            **self._inherited(sweep),
            **tag_texts(tags),
            "sweep": sweep.get("sweep", ""),
            "method": method,
            "number": str(number),
            "choice": choice_tag(choice),
        }
        name = trial_name(number, choice, tags.get("arm"), _seed(kind, tags))
        return self._create_run(name, kind, own, sweep_run_id, token, started_ms, in_doubt)

    def log_plan(
        self, run_id: str, sweep_run_id: str, choice: Mapping[str, Any], plan: Plan | None
    ) -> None:
        """Keep `choice.yaml`, `run.json` and, of a plan, `plan.safetensors` and `plan.json`."""
        sweep = self._sweep_tags(sweep_run_id)
        told = {key: sweep[key] for key in PROVENANCE if key in sweep} | provenance()
        told["versions"] = json.loads(told["versions"])
        files: dict[str, str | bytes] = {
            "choice.yaml": yaml.safe_dump(dict(choice), sort_keys=False),
            RECORD: json.dumps(told, indent=2),
        }
        if plan is not None:
            files["plan.safetensors"] = plan.to_bytes()
            files["plan.json"] = json.dumps(plan.summary(), indent=2)
        self._log_files(run_id, files)

    def log_test_rows(
        self, run_id: str, content: bytes, shown: Mapping[str, str | bytes] | None = None
    ) -> None:
        """Keep `test_rows.safetensors`: what a confirmation said of each test row; and what is
        `shown` of it, path -> content."""
        self._log_files(run_id, {TEST_ROWS: content, **(shown or {})})

    def delete_doubles(self, run_id: str, token: str) -> None:
        """Delete every other run that carries the token of this one.

        A server that hung may have created a run long after its caller had given up.
        """
        for run in self._search({"token": token}):
            if run.run_id != run_id:
                self._call(partial(self.client.delete_run, run.run_id))

    # The untouched base -----------------------------------------------------------------------

    def log_base(
        self, sweep_run_id: str, metrics: Mapping[str, float], tags: Mapping[str, Any]
    ) -> None:
        """Log what the untouched base was measured to be, as a run beside the confirmations.

        A sweep has one such run for what lm-eval was asked for, as the tag `lm_eval_digest` says;
        it is written again.
        """
        sweep = self._sweep_tags(sweep_run_id)
        own = {**self._inherited(sweep), "sweep": sweep.get("sweep", "")}
        token = f"base of {sweep_run_id} {tags['lm_eval_digest']}"
        run_id = self._create_run("base", "base", own, sweep_run_id, token, in_doubt=True)
        self.end(run_id, "complete", metrics=metrics, tags=tags)

    # Any run ----------------------------------------------------------------------------------

    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Iterable[Point] = (),
        tags: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        """Log params, metrics and tags together, in one call where they fit into one.

        `name` is what the run is called from now on. A point that the run has already, with the
        same step, value and time, is not logged again.
        """
        from mlflow.entities import Metric, RunTag

        written = run_params(params or {})
        named = [RunTag(PREFIX + key, value) for key, value in tag_texts(tags).items()]
        named += [] if name is None else [RunTag(NAME, name)]
        points = [
            Metric(NOT_IN_A_KEY.sub("_", point.key), point.value, point.at_ms, point.step)
            for point in metrics
        ]
        while written or named or points:
            room = max(0, ENTITIES_PER_BATCH - len(written))
            batch = {
                "params": written[:ENTITIES_PER_BATCH],
                "tags": named[:room],
                "metrics": points[:METRICS_PER_BATCH],
            }
            self._call(partial(self.client.log_batch, run_id, **batch))
            written, named = written[ENTITIES_PER_BATCH:], named[room:]
            points = points[METRICS_PER_BATCH:]

    def end(
        self,
        run_id: str,
        state: State,
        *,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, Any] | None = None,
        error: str | None = None,
        ended_ms: int | None = None,
    ) -> None:
        """Close a run: metrics and tags first, then MLflow's own status, last of all `status`."""
        self.log(run_id, metrics=at_step(metrics or {}, 0), tags={**(tags or {}), "error": error})
        self._call(lambda: self.client.set_terminated(run_id, MLFLOW_STATUS[state], ended_ms))
        self._call(lambda: self.client.set_tag(run_id, STATUS, state))

    def log_file(self, run_id: str, path: Path) -> None:
        """Keep a local file as an artifact of a run."""
        self._call(lambda: self.client.log_artifact(run_id, str(path)))

    def log_folder(self, run_id: str, folder: Path, name: str) -> str:
        """Keep the files of a local folder as the folder `name` of a run's artifacts; returns its
        URI."""
        self._call(lambda: self.client.log_artifacts(run_id, str(folder), name))
        return f"{self.run(run_id).info.artifact_uri.rstrip('/')}/{name}"

    def delete(self, run_id: str) -> None:
        """Delete a run, as MLflow does: it can be restored."""
        self._call(lambda: self.client.delete_run(run_id))

    def run(self, run_id: str) -> Run:
        """The run as MLflow has it now."""
        return self._call(lambda: self.client.get_run(run_id))

    def was_deleted(self, run_id: str) -> bool:
        """Whether somebody has deleted this run; one that MLflow has lost was not."""
        try:
            return bool(self.run(run_id).info.lifecycle_stage == "deleted")
        except RefusedError:
            return False

    # Inside -----------------------------------------------------------------------------------

    def _open_experiment(self, writes_files: bool) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            folder = sqlite_file(self.uri)
            location = None if folder is None else paths.artifacts_beside(folder).as_uri()
            try:
                return str(self.client.create_experiment(self.experiment, location))
            except MlflowException as error:
                # Another launch may have created it since.
                found = self.client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise error
        if found.lifecycle_stage != "active":
            raise ConfigError(
                f"tracking.experiment: {self.experiment!r} is deleted in MLflow; restore it "
                f"(mlflow experiments restore -x {found.experiment_id}) or name another"
            )
        if writes_files:
            check_artifacts(self.client, self.uri, found)
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
        every = self._own_tags | {PREFIX + key: value for key, value in tags.items()}
        every |= {PREFIX + "kind": kind, STATUS: "running", TOKEN: token}
        if parent is not None:
            every[PARENT] = parent

        def create() -> str:
            nonlocal in_doubt
            # An answer that was lost says nothing of the run: it may have been created.
            if in_doubt and (found := self._search({"token": token}, parent)):
                return found[-1].run_id
            in_doubt = True
            run = self.client.create_run(self.experiment_id, started_ms, every, name)
            return str(run.info.run_id)

        return self._call(create)

    def _sweep_tags(self, sweep_run_id: str) -> dict[str, str]:
        """The sweep's tags without their prefix, from memory where this tracker wrote them."""
        with self._lock:
            known = self._sweeps.get(sweep_run_id)
        if known is None:
            known = without_prefix(self.run(sweep_run_id).data.tags)
            with self._lock:
                known = self._sweeps.setdefault(sweep_run_id, known)
        return known

    @staticmethod
    def _inherited(sweep: Mapping[str, str]) -> dict[str, str]:
        return {key: sweep[key] for key in INHERITED if key in sweep}

    def _search(self, tags: Mapping[str, str], parent: str | None = None) -> list[RunFacts]:
        return search_runs(self.client, self.uri, [self.experiment_id], tags, parent)

    def _log_files(self, run_id: str, files: Mapping[str, str | bytes]) -> None:
        with tempfile.TemporaryDirectory(prefix="ranksweep-") as folder:
            for name, content in files.items():
                data = content.encode() if isinstance(content, str) else content
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).write_bytes(data)
            self._call(lambda: self.client.log_artifacts(run_id, folder))

    def _call(self, work: Callable[[], Result]) -> Result:
        return call(self.uri, work, self.patience)


def _seed(kind: str, tags: Mapping[str, Any]) -> int | None:
    """The seed that a confirmation is told by; that of a trial is the sweep's own."""
    return tags.get("seed") if kind == "confirm" else None
