"""Where MLflow keeps the files of an experiment, and whether this process can reach them there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from search.paths import artifacts_beside, nearest_there
from search.redaction import redacted
from search.tracking.mlflow import absolute_uri, call, connect, sqlite_file
from spaces.errors import ConfigError, TrackingError

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient


def check_experiment(uri: str, name: str) -> None:
    """Raise what a launch would for an experiment of a SQLite database; nothing is made for it."""
    file = sqlite_file(absolute_uri(uri))
    if file is None or not file.exists():
        return
    client = connect(uri)
    found = call(absolute_uri(uri), lambda: client.get_experiment_by_name(name))
    if found is not None:
        check_artifacts(client, absolute_uri(uri), found)


def check_artifacts(client: MlflowClient, uri: str, experiment: Experiment) -> None:
    """Raise ConfigError where the files of new runs of an experiment would be lost or misplaced.

    MLflow notes the place when an experiment is made: a server's own, or an absolute folder, which
    it would make anew where the project's folder has been moved or renamed since.
    """
    place = str(experiment.artifact_location)
    named = f"tracking.experiment: {experiment.name!r} keeps its artifacts"
    remedy = "name another experiment (--set tracking.experiment=...)"
    if place.startswith("mlflow-artifacts:"):
        if uri != "databricks" and not uri.startswith("http"):
            raise ConfigError(
                f"{named} behind an MLflow server ({place}), and {redacted(uri)} is its database "
                f"alone; set tracking.uri to the server's http address, or {remedy}"
            )
        return
    folder = local_folder(place)
    if folder is None or os.path.isdir(folder):  # not of Path, which raises where none may look
        return
    database = sqlite_file(uri)
    beside = None if database is None else artifacts_beside(database)
    if folder != beside and client.search_runs([experiment.experiment_id], max_results=1):
        raise ConfigError(
            f"{named} in {folder}, which is not on this machine (any more; was its folder moved or "
            f"renamed?); put it back, or {remedy}; docs/faults.md says how to tell MLflow of a move"
        )
    above = nearest_there(folder)
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise ConfigError(
            f"{named} in {folder}, which cannot be made ({above} cannot be written to); change its "
            f"permissions, or {remedy}"
        )


def local_folder(place: str) -> Path | None:
    """The folder that an artifact location or URI of MLflow names; None where it is no folder."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    return Path(local_file_uri_to_path(place)) if is_local_uri(place) else None


def moved_with_database(uri: str, place: str) -> Path | None:
    """Where a run's artifacts are when they have moved with their SQLite database; else None.

    `place` is the run's own artifact URI, `.../mlartifacts/<run id>/artifacts`. Raises
    TrackingError where it is a folder that is gone with all that was around it.
    """
    folder = local_folder(place)
    if folder is None or folder.exists():
        return None
    database = sqlite_file(uri)
    if database is not None:
        there = artifacts_beside(database).joinpath(*folder.parts[-2:])
        if there.is_dir():
            return there
    root = folder.parents[1]
    if root.is_dir():
        return None  # the run has no artifacts
    raise TrackingError(
        f"tracking: the artifacts of run {folder.parent.name} are in {root}, which is not on this "
        "machine (any more; was its folder moved?); put it back, or copy it beside the database"
    )
