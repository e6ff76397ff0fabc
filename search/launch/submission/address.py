"""Where a cluster takes jobs: the address of its dashboard, from what a user gives."""

from __future__ import annotations

import socket
from urllib.parse import SplitResult, urlsplit

import requests

from search.launch.ray_environment import ANSWER_S
from search.redaction import redacted
from spaces.errors import ConfigError, one_line

DASHBOARD_PORT = 8265
CLIENT_PORT = 10001
_FORMS = f"http://HOST:{DASHBOARD_PORT} of its dashboard, or ray://HOST:{CLIENT_PORT}"


def dashboard_url(address: str, option: str) -> str:
    """`http://HOST:PORT` of the dashboard that an address means, once it answers.

    An address is that URL, HOST:PORT or HOST of the dashboard, or `ray://HOST:PORT`, which is asked
    where its dashboard is. Raises ConfigError, naming the `option` that gives it, where it is none
    of these, or no dashboard answers.
    """
    scheme, separator, rest = address.strip().partition("://")
    if not separator:
        scheme, rest = "http", scheme
    parts = _parts(scheme, rest.partition("#")[0].rstrip("/"), address, option)
    host = parts.hostname or ""
    if scheme == "ray":
        _check_listens(host, parts.port or CLIENT_PORT, address, option)
        return _dashboard_of_a_client(parts.geturl(), option)
    if not separator and parts.port is None:
        parts = parts._replace(netloc=f"{parts.netloc}:{DASHBOARD_PORT}")
    url = parts.geturl()
    _check_listens(host, parts.port or {"http": 80, "https": 443}[scheme], url, option)
    _check_is_a_dashboard(url, option)
    return url


def _parts(scheme: str, rest: str, address: str, option: str) -> SplitResult:
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        known = scheme in ("http", "https", "ray") and bool(parts.hostname)
        known = known and parts.port != 0 and address not in ("auto", "local")
    except ValueError:  # a port that is none
        known = False
    if not known:
        raise ConfigError(
            f"{option}: {redacted(address)!r} is no address of a cluster; use {_FORMS}"
        )
    if parts.username is not None or parts.query:
        raise ConfigError(
            f"{option}: an address holds no credentials; give the token of a cluster that asks for "
            "one by RAY_AUTH_TOKEN"
        )
    return parts


def _check_listens(host: str, port: int, url: str, option: str) -> None:
    try:
        socket.create_connection((host, port), timeout=ANSWER_S).close()
    except OSError as error:
        raise ConfigError(
            f"{option}: nobody listens at {url} ({error.strerror or error}); give {_FORMS}, and "
            "forward the port where it is not open (`ray dashboard cluster.yaml`)"
        ) from None


def _check_is_a_dashboard(url: str, option: str) -> None:
    try:
        answer = requests.get(f"{url}/api/version", timeout=ANSWER_S)
        # who asks for a token is one too; what it is told with, Ray's own client knows
        known = answer.status_code in (401, 403) or "ray_version" in answer.json()
        reason = "" if known else f"status {answer.status_code}"
    except requests.exceptions.RequestException as error:
        reason = one_line(error)[:200]
    except (ValueError, TypeError):
        reason = "its answer is not Ray's"
    if reason:
        raise ConfigError(
            f"{option}: what listens at {url} is no dashboard of Ray ({reason}); give its port, "
            f"which is {DASHBOARD_PORT} unless `ray start` was told otherwise: 6379 is for nodes "
            f"and {CLIENT_PORT} for Ray's client (ray://HOST:{CLIENT_PORT})"
        )


def _dashboard_of_a_client(address: str, option: str) -> str:
    from ray.dashboard.utils import ray_client_address_to_api_server_url

    try:
        url = str(ray_client_address_to_api_server_url(address)).rstrip("/")
    except Exception as error:  # whatever keeps Ray's client from connecting
        raise ConfigError(
            f"{option}: {address} does not say where its dashboard is ({one_line(error)}); give "
            f"http://HOST:{DASHBOARD_PORT}"
        ) from None
    _check_is_a_dashboard(url, option)
    return url
