"""What MLflow, its server or its database raises, in one line with what helps against it."""

from __future__ import annotations

import http.server
import sqlite3
import ssl
import threading
from collections.abc import Iterator

import pytest
from botocore.exceptions import NoCredentialsError
from mlflow.exceptions import MlflowException, RestException
from sqlalchemy.exc import NoSuchModuleError, OperationalError

from search.tracking.mlflow import call, connect
from spaces.errors import ConfigError, TrackingError

SERVER, FILE = "https://me:hunter2@mlflow.example.org", "sqlite:////data/mlflow.db"
LOGIN = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
ANSWERS = "API request to endpoint /api/2.0/mlflow failed with error code"
FAILS = "API request to https://me:hunter2@mlflow.example.org failed with exception"
OLD = "Detected out-of-date database schema (found version 1, but expected 2). Take a backup"

RAISED: list[tuple[str, Exception, str]] = [
    (SERVER, MlflowException(f"{ANSWERS} 401 != 200. Response body: 'no'", 16), LOGIN),
    (SERVER, MlflowException(f"{ANSWERS} 403 != 200. Response body: 'no'", 7), LOGIN),
    (SERVER, RestException({"error_code": "PERMISSION_DENIED", "message": "denied"}), LOGIN),
    (SERVER, MlflowException(f"{ANSWERS} 403 != 200. 'Invalid Host header'"), "--allowed-hosts"),
    (SERVER, MlflowException(f"{ANSWERS} 407 != 200."), "NO_PROXY"),
    (SERVER, MlflowException(f"{FAILS} ProxyError('Cannot connect to proxy')"), "NO_PROXY"),
    (
        SERVER,
        MlflowException(f"{FAILS} SSLError(CERTIFICATE_VERIFY_FAILED)"),
        "MLFLOW_TRACKING_SERVER_CERT_PATH",
    ),
    (SERVER, ssl.SSLError(1, "CERTIFICATE_VERIFY_FAILED"), "MLFLOW_TRACKING_SERVER_CERT_PATH"),
    (SERVER, NoCredentialsError(), "check that the server runs"),
    (SERVER, ModuleNotFoundError("No module named 'google.cloud'"), "install what MLflow lacks"),
    (SERVER, MlflowException(f"{FAILS} Connection refused"), "check that the server runs"),
    (FILE, MlflowException(OLD), "mlflow db upgrade"),
    (FILE, MlflowException("Can't locate revision identified by 'f1'"), "mlflow db upgrade"),
    (FILE, OperationalError("x", {}, sqlite3.OperationalError("disk I/O error")), "check the file"),
    (FILE, OperationalError("x", {}, sqlite3.OperationalError("readonly database")), "permissions"),
    (FILE, PermissionError(13, "Permission denied", "/data/mlartifacts"), "permissions"),
    (FILE, OSError(28, "No space left on device"), "free space"),
    ("postgresql://h/d", ModuleNotFoundError("No module named 'psycopg2'"), "install what"),
    ("mssql://h/d", NoSuchModuleError("Can't load plugin"), "write for example"),
]


@pytest.mark.parametrize(("uri", "error", "remedy"), RAISED, ids=range(len(RAISED)))
def test_what_mlflow_raises_is_one_line_with_a_remedy(
    uri: str, error: Exception, remedy: str
) -> None:
    def work() -> None:
        raise error

    with pytest.raises(TrackingError) as told:
        call(uri, work, patience=0)
    line = str(told.value)
    assert line.startswith("tracking: ")
    assert remedy in line
    assert "hunter2" not in line
    assert "\n" not in line
    assert told.value.exit_code == 1


def test_an_error_of_our_own_stays_what_it_is() -> None:
    def work() -> None:
        raise ConfigError("tracking.experiment: is deleted; restore it")

    with pytest.raises(ConfigError, match="restore it"):
        call(FILE, work)


@pytest.fixture
def guarded() -> Iterator[str]:
    """The address of a server that asks who one is, and counts on no second try."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def do_POST(self) -> None:
            self.send_error(401)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_server_that_asks_who_one_is_is_told_from_one_that_is_away(guarded: str) -> None:
    with pytest.raises(TrackingError, match=rf"error code 401.*{LOGIN}"):
        connect(guarded)
