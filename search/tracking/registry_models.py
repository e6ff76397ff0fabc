"""Models that others have registered in MLflow: their versions, and the files of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.tracking.facts import PREFIX
from search.tracking.mlflow import PAGE, call, connect, every_page, where_there

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

READY = "READY"
_MOST_FOLDERS = 200
"""Folders of one version that are listed; a model has a handful."""


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model, as MLflow says."""

    name: str
    version: int
    created_ms: int
    source: str
    """Where its files are, as whoever registered it said."""
    status: str
    """`READY`, or why it cannot be had yet."""
    ours: bool
    """Whether ranksweep has registered it, or the model that it is a version of."""


class RegisteredModels:
    """The model registry behind a tracking URI; a local database that is not there is none.

    Raises:
        ConfigError: a URI that MLflow cannot track to.
        TrackingError: the server or database is not there or cannot be read.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = connect(uri, must_exist=True)

    def versions(self, pattern: str, alias: str | None = None) -> list[ModelVersion]:
        """The versions of the models whose name is a pattern's, the oldest first.

        With `alias` of each model only the one that it points to.
        """
        found: list[ModelVersion] = []
        for model in self._models(pattern):
            ours = _is_ours(model.tags)
            if alias is None:
                query = partial(
                    self._client.search_model_versions, _named(model.name), max_results=PAGE
                )
                versions = list(every_page(self.uri, query))
            else:
                number = {name.lower(): v for name, v in model.aliases.items()}.get(alias.lower())
                versions = [] if number is None else self._one(model.name, str(number))
            found += [
                ModelVersion(
                    name=str(each.name),
                    version=int(each.version),
                    created_ms=int(each.creation_timestamp),
                    source=str(each.source),
                    status=str(each.status),
                    ours=ours or _is_ours(each.tags),
                )
                for each in versions
            ]
        return sorted(found, key=lambda each: (each.created_ms, each.name, each.version))

    def files(self, version: ModelVersion) -> dict[str, int]:
        """The files of a version by name, with their sizes in bytes; -1 where MLflow has none."""
        repository = self._repository(version)
        found: dict[str, int] = {}
        folders = [""]
        for path in islice(folders, _MOST_FOLDERS):  # which grows by what it leads to
            for file in call(self.uri, partial(repository.list_artifacts, path or None)):
                if file.is_dir:
                    folders.append(file.path)
                else:
                    found[file.path] = -1 if file.file_size is None else int(file.file_size)
        return found

    def fetch(self, version: ModelVersion, name: str, folder: Path) -> Path:
        """Bring one file of a version to a folder; returns where it is there."""
        repository = self._repository(version)
        return Path(call(self.uri, lambda: repository.download_artifacts(name, str(folder))))

    def try_to_write(self, name: str) -> None:
        """Register a model of this name, of no version, and remove it again."""
        call(self.uri, lambda: self._client.create_registered_model(name))
        call(self.uri, lambda: self._client.delete_registered_model(name))

    def _models(self, pattern: str) -> list[Any]:
        if "*" not in pattern:
            return self._model(pattern)
        query = partial(self._client.search_registered_models, max_results=PAGE)
        return [each for each in every_page(self.uri, query) if fnmatchcase(each.name, pattern)]

    def _model(self, name: str) -> list[Any]:
        return self._if_there(partial(self._client.get_registered_model, name))

    def _one(self, name: str, version: str) -> list[Any]:
        return self._if_there(partial(self._client.get_model_version, name, version))

    def _if_there(self, look: Callable[[], Any]) -> list[Any]:
        found = where_there(self.uri, look)
        return [] if found is None else [found]

    def _repository(self, version: ModelVersion) -> ArtifactRepository:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        place = call(
            self.uri,
            lambda: self._client.get_model_version_download_uri(version.name, str(version.version)),
        )
        model_id = place.removeprefix("models:/")
        if model_id != place and "/" not in model_id:
            # MLflow would look for it at the tracking URI of the process, which may be another.
            place = call(
                self.uri, lambda: self._client.get_logged_model(model_id).artifact_location
            )
        return call(self.uri, lambda: get_artifact_repository(place, tracking_uri=self.uri))


def _named(name: str) -> str:
    """MLflow's filter of the versions of a model."""
    quote = '"' if "'" in name else "'"
    return f"name={quote}{name}{quote}"


def _is_ours(tags: Mapping[str, str]) -> bool:
    return any(key.startswith(PREFIX) for key in tags)
