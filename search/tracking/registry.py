"""MLflow's model registry: registered models, their versions, and which of them is champion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from search.tracking.facts import PREFIX, tag_texts, without_prefix
from search.tracking.mlflow import Result, absolute_uri, call, connect, every_page, where_there

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
"""The alias of the version that is champion."""
_PAGE = 100  # the most that a server gives of models at a time


@dataclass(frozen=True)
class Version:
    """One version of a registered model; `tags` are those of ranksweep, without their prefix."""

    model: str
    number: int
    run_id: str
    created_ms: int
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Registered:
    """A registered model; `champion` is the number of the version with that alias."""

    name: str
    tags: Mapping[str, str]
    champion: int | None


class Registry:
    """The registry that belongs to a tracking URI: MLflow keeps both in one place.

    Raises:
        ConfigError: a URI that MLflow cannot track to.
        TrackingError: the server or database is not there, or cannot be read or written.
    """

    def __init__(self, uri: str) -> None:
        self.uri = absolute_uri(uri)
        self._client = connect(self.uri, must_exist=True)

    def models(self) -> list[Registered]:
        """Those that ranksweep has registered, by name."""
        found = (
            _registered(each)
            for each in every_page(
                self.uri, partial(self._client.search_registered_models, None, _PAGE)
            )
        )
        return sorted((each for each in found if "task" in each.tags), key=lambda each: each.name)

    def model(self, name: str) -> Registered | None:
        """The registered model of this name, of whomever; None where there is none."""
        found = where_there(self.uri, partial(self._client.get_registered_model, name))
        return None if found is None else _registered(found)

    def champion(self, name: str) -> Version | None:
        """The version that is champion; None where there is none."""
        look = partial(self._client.get_model_version_by_alias, name, CHAMPION)
        found = where_there(self.uri, look)
        return None if found is None else _version(found)

    def versions(self, name: str) -> list[Version]:
        """All versions of a model whose name has no quote, newest first."""
        query = partial(self._client.search_model_versions, f"name='{name}'", _PAGE)
        found = [_version(each) for each in every_page(self.uri, query)]
        return sorted(found, key=lambda each: -each.number)

    def register(self, name: str, tags: Mapping[str, str]) -> Registered:
        """Make the registered model of this name unless it is there; returns what is there."""
        from mlflow.exceptions import MlflowException

        def make() -> None:
            try:
                every = {PREFIX + key: value for key, value in tags.items()}
                self._client.create_registered_model(name, every)
            except MlflowException as error:
                # Another promotion, or a call whose answer was lost, has made it.
                if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
                    raise

        if self.model(name) is None:
            self._call(make)
        found = self.model(name)
        assert found is not None, "it has just been made"
        return found

    def add_version(
        self, name: str, source: str, run_id: str, tags: Mapping[str, Any], description: str
    ) -> Version:
        """The version that a run's model is: one that is there already, else a new one.

        `source` is the URI of its artifacts, which must be there whole.
        """

        def make() -> ModelVersion:
            for known in self.versions(name):  # a call whose answer was lost may have made it
                if known.run_id == run_id:
                    return self._client.get_model_version(name, str(known.number))
            return self._client.create_model_version(
                name, source, run_id, dict(self._texts(tags)), description=description
            )

        return _version(self._call(make))

    def tag(self, version: Version, tags: Mapping[str, Any]) -> None:
        """Set tags of a version; None takes one away."""
        at = version.model, str(version.number)
        texts = self._texts(tags)
        for key, value in texts.items():
            self._call(partial(self._client.set_model_version_tag, *at, key, value))
        for key in tags:
            if PREFIX + key not in texts and key in version.tags:
                self._call(partial(self._client.delete_model_version_tag, *at, PREFIX + key))

    def crown(self, version: Version) -> None:
        """Make a version the champion. MLflow does so whatever another call has done since."""
        at = version.model, CHAMPION, str(version.number)
        self._call(partial(self._client.set_registered_model_alias, *at))

    # Inside -----------------------------------------------------------------------------------

    @staticmethod
    def _texts(tags: Mapping[str, Any]) -> dict[str, str]:
        return {PREFIX + key: value for key, value in tag_texts(tags).items()}

    def _call(self, work: Callable[[], Result]) -> Result:
        return call(self.uri, work)


def _registered(found: Any) -> Registered:
    champion = (found.aliases or {}).get(CHAMPION)
    number = None if champion is None else int(champion)
    return Registered(found.name, without_prefix(found.tags or {}), number)


def _version(found: ModelVersion) -> Version:
    return Version(
        model=found.name,
        number=int(found.version),
        run_id=found.run_id or "",
        created_ms=int(found.creation_timestamp),
        tags=without_prefix(found.tags),
    )
