"""The runs of ranksweep that an MLflow server or database has, for those who only read them."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from search.tracking.artifacts import moved_with_database
from search.tracking.conditions import Condition
from search.tracking.facts import Point, RunFacts
from search.tracking.histories import histories
from search.tracking.mlflow import (
    PATIENCE_S,
    call,
    connect,
    experiment_names,
    is_refused,
    search_runs,
)
from search.tracking.ui import ui_link


class RecordedRuns:
    """What has been recorded at a tracking URI; a local database that is not there is none.

    A server that is away is waited for `patience` seconds, once it has answered.

    Raises:
        ConfigError: a URI that MLflow cannot track to.
        TrackingError: the server or database is not there or cannot be read.
    """

    def __init__(self, uri: str, patience: float = PATIENCE_S) -> None:
        self.uri, self._patience = uri, patience
        self._client = connect(uri, must_exist=True)

    def experiments(self) -> dict[str, str]:
        """Id -> name of every active experiment."""
        return experiment_names(self._client, self.uri)

    def search(
        self,
        tags: Mapping[str, str],
        experiments: Collection[str],
        parent: str | None = None,
        *,
        where: Sequence[Condition] = (),
        at_most: int | None = None,
    ) -> list[RunFacts]:
        """The active runs with these tags (without the prefix) in these experiments, newest first.

        `parent` is the run id of a sweep, whose runs alone are wanted; `where` are further
        conditions, and `at_most` the most runs that are read.
        """
        return search_runs(
            self._client,
            self.uri,
            list(experiments),
            tags,
            parent,
            self._patience,
            where=where,
            at_most=at_most,
        )

    def find(self, run_id: str) -> RunFacts | None:
        """The run of this id; None where there is none."""
        from mlflow.exceptions import MlflowException

        def look() -> RunFacts | None:
            try:
                return RunFacts.of(self._client.get_run(run_id))
            except MlflowException as error:
                if is_refused(error):
                    return None
                raise

        return call(self.uri, look, self._patience)

    def histories(self, run_ids: Sequence[str], key: str) -> dict[str, list[Point]]:
        """Run id -> the points of a metric by step; runs that do not have it are left out."""
        return histories(self._client, self.uri, run_ids, key, self._patience)

    def link_to(self, run_id: str) -> str | None:
        """The page of a run in MLflow's UI; None where no server is named, or the run is gone."""
        found = self.find(run_id)
        return None if found is None else ui_link(self.uri, found.experiment_id, run_id)

    def files(self, run_id: str) -> frozenset[str]:
        """The names of a run's artifacts."""
        moved = self._moved(run_id)
        if moved is not None:
            return frozenset(each.name for each in moved.iterdir())
        found = call(self.uri, lambda: self._client.list_artifacts(run_id))
        return frozenset(file.path for file in found)

    def artifact(self, run_id: str, name: str) -> bytes:
        """One artifact of a run."""
        moved = self._moved(run_id)
        if moved is not None:
            return (moved / name).read_bytes()
        with tempfile.TemporaryDirectory(prefix="ranksweep-") as folder:
            path = call(self.uri, lambda: self._client.download_artifacts(run_id, name, folder))
            return Path(path).read_bytes()

    def _moved(self, run_id: str) -> Path | None:
        """The folder of a run's artifacts where they have moved with their database."""
        run = call(self.uri, lambda: self._client.get_run(run_id))
        return moved_with_database(self.uri, str(run.info.artifact_uri))
