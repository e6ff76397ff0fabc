"""The way to an MLflow server or database: its URI, its client, calls that are patient.

Here and in the files beside, MLflow is imported where it is used: it takes seconds, and hears
of the settings that `connect` makes only before it is imported.
"""

from __future__ import annotations

import gc
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from filelock import FileLock
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_exponential

from search.paths import artifacts_beside, private_files, sqlite_uri
from search.redaction import redacted, redacted_text
from search.tracking.conditions import Condition, Text
from search.tracking.facts import PARENT, PREFIX, RunFacts
from spaces.errors import ConfigError, RanksweepError, TrackingError, nearest, one_line

if TYPE_CHECKING:
    from mlflow.store.entities import PagedList
    from mlflow.tracking import MlflowClient


_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")

# How long a server that is away is waited for, and the longest pause between two tries.
PATIENCE_S = 60.0
_LOCAL_PATIENCE_S = 30.0
_LONGEST_PAUSE_S = 8.0
PAGE = 1000

# What MLflow itself says of a run that is gone or a value that it does not take; a proxy in front
# of a server that is away says other things.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
_UNKNOWN_USER = ("UNAUTHENTICATED", "PERMISSION_DENIED")
_CREDENTIALS = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to those "
    "of a user who may write there"
)
_REMEDIES = (
    (r"Invalid Host header", "have the server started with --allowed-hosts and this host's name"),
    (r"error code 40[13]\b", _CREDENTIALS),
    (
        r"error code 407\b|ProxyError",
        "a proxy is in the way: check HTTPS_PROXY and HTTP_PROXY, and name the server in NO_PROXY",
    ),
    (
        r"SSLError|CERTIFICATE_VERIFY_FAILED",
        "set MLFLOW_TRACKING_SERVER_CERT_PATH or REQUESTS_CA_BUNDLE to the certificates that it is "
        "signed by, and check https in its address",
    ),
    (
        r"database schema|Can't locate revision",
        "another MLflow has written it: after a copy, run `mlflow db upgrade` with its address "
        "where that was an older one, else install the newer; or name another database",
    ),
)
"""What MLflow's client says where another try would not help, and what does."""
Result = TypeVar("Result")


class RefusedError(TrackingError):
    """MLflow has answered, and does not take what it was given."""


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
    return sqlite_uri(file)


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
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.tracking import MlflowClient

    _silence()

    def open_client() -> MlflowClient:
        with _brief_requests() if file is None else _opening(file):
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
        return client

    return call(uri, open_client, patience=10.0)


def call(uri: str, work: Callable[[], Result], patience: float = PATIENCE_S) -> Result:
    """Do one piece of work with MLflow.

    A local database that is locked or being created by another process is tried again for half a
    minute, a server that does not answer, or answers that it cannot now, for `patience` seconds: a
    sweep of hours must outlast a server's restart.

    Raises:
        TrackingError: with the reason and a remedy on one line, without credentials;
            `RefusedError` where another try would be refused too.
    """
    from mlflow.exceptions import MlflowException

    local = sqlite_file(uri) is not None

    def may_pass(error: BaseException) -> bool:
        if not isinstance(error, (MlflowException, SQLAlchemyError, OSError)):
            return False
        # A write that met a lock was rolled back whole, so that it can be done again.
        busy = "database is locked" in str(error) or "already exists" in str(error)
        return busy if local else not (is_refused(error) or _known_remedy(error))

    tries = Retrying(
        retry=retry_if_exception(may_pass),
        wait=wait_exponential(0.05, max=2.0) if local else wait_exponential(max=_LONGEST_PAUSE_S),
        stop=stop_before_delay(_LOCAL_PATIENCE_S if local else patience),
        reraise=True,
    )
    try:
        return tries(work)
    except RanksweepError:
        raise
    except Exception as error:  # of MLflow, its database, or of what it keeps artifacts with
        remedy = _known_remedy(error) or (
            "check the file, its folder's permissions and the free space"
            if local
            else "check that the server runs and that --tracking names it"
        )
        kind = RefusedError if is_refused(error) else TrackingError
        ours = isinstance(error, (MlflowException, SQLAlchemyError, OSError))
        reason = _one_line(str(error) if ours else one_line(error), uri)
        raise kind(f"tracking: {redacted(uri)}: {reason}; {remedy}") from error


def _known_remedy(error: BaseException) -> str | None:
    """What helps against an error that no other try would pass; None for every other."""
    if isinstance(error, ImportError):
        return "install what MLflow lacks for this address, or name another"
    if isinstance(error, ArgumentError):
        return "write for example sqlite:////directory/file.db or postgresql://user@host/database"
    text = str(error)
    found = next((remedy for sign, remedy in _REMEDIES if re.search(sign, text)), None)
    if found is None and getattr(error, "error_code", None) in _UNKNOWN_USER:
        return _CREDENTIALS
    return found


def is_refused(error: BaseException) -> bool:
    """Whether MLflow itself has answered so, and would answer another try alike."""
    return getattr(error, "error_code", None) in _REFUSALS


def experiment_names(client: MlflowClient, uri: str) -> dict[str, str]:
    """Id -> name of every active experiment."""
    found = every_page(uri, partial(client.search_experiments, max_results=PAGE))
    return {each.experiment_id: each.name for each in found}


def search_runs(
    client: MlflowClient,
    uri: str,
    experiment_ids: Sequence[str],
    tags: Mapping[str, str],
    parent: str | None = None,
    patience: float = PATIENCE_S,
    *,
    where: Sequence[Condition] = (),
    at_most: int | None = None,
) -> list[RunFacts]:
    """The active runs that carry these tags (without the prefix) and meet all conditions, newest
    first; the newest `at_most` of them, and all without it.

    MLflow's server or database chooses them. What its filter language cannot hold it is asked for
    in part, and the rest is compared here.
    """
    wanted: list[Condition] = [Text(PREFIX + key, value) for key, value in tags.items()]
    if parent is not None:
        wanted.append(Text(PARENT, parent))
    wanted += where
    if not all(each.may_hold for each in wanted):
        return []
    clauses = " and ".join(clause for each in wanted for clause in each.clauses())
    size = PAGE if at_most is None else min(PAGE, at_most)
    query = partial(client.search_runs, list(experiment_ids), clauses, max_results=size)
    found = every_page(uri, query, patience)
    runs = (RunFacts.of(run) for run in found if all(each.holds(run) for each in wanted))
    with _without_collecting():
        return list(islice(runs, at_most))


@contextmanager
def _without_collecting() -> Iterator[None]:
    """While open, Python does not look for cycles: it would go through all that is loaded again and
    again while runs are made, for half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def every_page(
    uri: str, search: Callable[..., PagedList[Any]], patience: float = PATIENCE_S
) -> Iterator[Any]:
    """What a search finds, page after page."""
    token: str | None = None
    while True:
        page = call(uri, partial(search, page_token=token), patience)
        yield from page
        token = page.token
        if not token:
            return


def where_there(uri: str, look: Callable[[], Result]) -> Result | None:
    """What a look finds; None where MLflow has nothing of that name."""
    from mlflow.exceptions import MlflowException

    def found() -> Result | None:
        try:
            return look()
        except MlflowException as error:
            if is_refused(error):
                return None
            raise

    return call(uri, found)


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
        with FileLock(f"{file}.lock", mode=0o600), _default_artifacts(artifacts_beside(file)):
            yield


@contextmanager
def _default_artifacts(folder: Path) -> Iterator[None]:
    """While open, a new database's experiment `Default` keeps its artifacts in this folder.

    MLflow would take the current directory, and write its name into SQL as it stands.
    """
    name = "_MLFLOW_SERVER_ARTIFACT_ROOT"
    ours = name not in os.environ
    os.environ.setdefault(name, folder.as_uri())
    try:
        yield
    finally:
        if ours:
            os.environ.pop(name, None)


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
