"""Where a submitted sweep keeps its profiles, runs and study, and what may be said of it.

Addresses that the sweep or the command line names travel; they may hold no credentials. What the
environment says here, it has to say there: of the environment nothing travels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import make_url

from search.config.reading import STORE_VARIABLE, TRACKING_VARIABLE
from search.config.sweep import SweepConfig
from search.redaction import redacted
from spaces.errors import ConfigError
from trainables.bases.location import is_of_hub

_OF_A_SCHEME = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
"""What the names of the variables of a store start with."""
_OF_CREDENTIALS = (
    "KEY",
    "SECRET",
    "TOKEN",
    "ACCOUNT",
    "CREDENTIALS",
    "PROFILE",
    "ENDPOINT",
    "REGION",
)
"""What the names of those among them have that say who asks, and whom."""
_OF_TRACKING = (
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_S3_ENDPOINT_URL",
)
_OF_THE_HUB = ("HF_TOKEN", "HF_ENDPOINT")
_OF_POSTGRES = ("PGPASSWORD", "PGPASSFILE")
_HERE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Places:
    """What of its places a sweep takes along, and the variables that the cluster must have.

    `store` and `tracking` are None where neither the sweep nor the command line names them.
    `required` maps a variable that the job cannot be without to what it is for; `wanted` are set
    here and used by the sweep, where a role of the cluster's machines may do in their place.
    """

    store: str | None
    tracking: str | None
    required: Mapping[str, str]
    wanted: tuple[str, ...]
    notes: tuple[str, ...]


def places_of(
    config: SweepConfig,
    written: Mapping[str, Any],
    *,
    store: str | None,
    tracking: str | None,
    shared: bool,
    environment: Mapping[str, str] = os.environ,
) -> Places:
    """Of a sweep as it is `written`; `store` and `tracking` are those of the command line.

    Raises ConfigError, naming the key, where an address holds credentials, or leads to a file of
    this machine that would be another one there.
    """
    section = written.get("tracking")
    store = store or written.get("store")
    tracking = tracking or (section.get("uri") if isinstance(section, Mapping) else None)
    required = {}
    if store is not None:
        _refuse_credentials("store", store, STORE_VARIABLE)
    elif environment.get(STORE_VARIABLE):
        required[STORE_VARIABLE] = "the store"
    if tracking is not None:
        _refuse_credentials("tracking.uri", tracking, TRACKING_VARIABLE)
    elif environment.get(TRACKING_VARIABLE):
        required[TRACKING_VARIABLE] = "MLflow"
    if config.search.study is not None:
        _check_study(config.search.study, shared)
    return Places(
        store=store,
        tracking=tracking,
        required=required,
        wanted=tuple(dict.fromkeys(_wanted(config, environment))),
        notes=tuple(_notes(store, tracking, required)),
    )


def _refuse_credentials(key: str, uri: str, variable: str) -> None:
    if redacted(uri) != uri:
        raise ConfigError(
            f"{key}: {redacted(uri)} holds credentials or settings, which do not travel; leave it "
            f"out of the sweep, and set {variable} here and in the cluster's environment"
        )


def _check_study(study: str, shared: bool) -> None:
    url = make_url(study)
    if url.get_backend_name() == "sqlite" and not shared:
        raise ConfigError(
            "search.study: a SQLite file of this machine is another one there; name a database "
            "server, or give --shared where its folder is the same on the cluster"
        )
    if url.password is not None or any("pass" in key.lower() for key in url.query):
        raise ConfigError(
            f"search.study: {redacted(study)} holds a password, which does not travel; leave it "
            "out, and set PGPASSWORD, or what else its driver reads, in the cluster's environment"
        )


def _wanted(config: SweepConfig, environment: Mapping[str, str]) -> Iterator[str]:
    """The variables, set here, that some part of the sweep takes its credentials from."""
    prefix = _OF_A_SCHEME.get(config.store.partition("://")[0])
    named: list[str] = []
    if prefix is not None:
        ours = sorted(name for name in environment if name.startswith(prefix))
        named += [name for name in ours if any(part in name for part in _OF_CREDENTIALS)]
    if config.tracking.uri.startswith(("http://", "https://")):
        named += _OF_TRACKING
    data = config.task.data
    if is_of_hub(config.base) or data.hub is not None:
        named += _OF_THE_HUB
    if config.search.study is not None and make_url(config.search.study).get_backend_name() == (
        "postgresql"
    ):
        named += _OF_POSTGRES
    return (name for name in named if environment.get(name))


def _notes(store: str | None, tracking: str | None, required: Mapping[str, str]) -> Iterator[str]:
    if store is None and STORE_VARIABLE not in required:
        yield "profiles are kept in the remote folder, unless the cluster sets RANKSWEEP_STORE"
    elif store is not None and not urlsplit(store).netloc and store.startswith("file:///"):
        yield f"the store {store} is a folder of the head node"
    elif store is not None and (store.startswith("file://") or "://" not in store):
        yield f"the store {store} is in the remote folder"
    if tracking is None and TRACKING_VARIABLE not in required:
        yield "runs are kept in the remote folder, unless the cluster sets MLFLOW_TRACKING_URI"
    elif tracking is not None and "://" in tracking and urlsplit(tracking).hostname in _HERE:
        yield f"{tracking} is what listens on the head node, not here"
    elif tracking is not None and tracking.startswith("sqlite"):
        yield f"the runs' database {tracking} is a file of the head node"
