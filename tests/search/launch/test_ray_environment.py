"""What a launch gives to Ray, and how a Ray that does not start or answer is told."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import site
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import AuthenticationError

from search.config.reading import parse_sweep
from search.config.sweep import SweepConfig
from search.interrupts import Interrupts
from search.launch.private_ray import OwnPath, running_cluster, token_of_our_own
from search.launch.ray_cluster import ray_cluster
from search.launch.ray_environment import (
    LONGEST_FOLDER,
    carried_path,
    check_listens,
    own_cpus,
    short_folder,
    wants_own_token,
)
from spaces.errors import ConfigError, RanksweepError
from tests.search.config.test_sweep import raw

ROOT = str(Path(__file__).parents[3])


def sweep_on(address: str) -> SweepConfig:
    return parse_sweep(raw(cluster={"address": address}))


# -- the workers' path -----------------------------------------------------------------------------


def test_a_checkout_that_runs_as_it_stands_is_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = site.getsitepackages()
    monkeypatch.setattr(sys, "path", ["/somewhere", ROOT, *installed])
    assert carried_path() == [ROOT]
    assert OwnPath()._py_driver_sys_path == [ROOT]


def test_what_something_of_the_users_would_hide_is_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spaces.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *site.getsitepackages(), ROOT])
    assert carried_path() == [ROOT]


def test_what_is_installed_every_node_has_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/somewhere", *site.getsitepackages(), ROOT])
    assert carried_path() == []


# -- the folder of Ray's sockets -------------------------------------------------------------------


def test_a_folder_that_rays_sockets_fit_into_is_left_to_ray(tmp_path: Path) -> None:
    assert short_folder({}) is None
    assert short_folder({"RAY_TMPDIR": "/tmp", "TMPDIR": "/no/such/thing/at/all"}) is None


@pytest.mark.parametrize(
    "folder",
    ["/tmp/" + "x" * LONGEST_FOLDER, "/tmp/a b", "/tmp/50%", "/tmp/ü", "/proc/nothing"],
)
@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_another_folder_is_taken_where_they_do_not(variable: str, folder: str) -> None:
    found = short_folder({variable: folder})
    assert found == "/tmp/ray"


def test_another_folder_is_taken_where_it_may_not_be_entered(locked: Path) -> None:
    found = short_folder({"TMPDIR": f"{locked}/job"})
    assert found is not None
    assert not found.startswith(str(locked))


def test_the_longest_folder_is_what_the_sockets_leave() -> None:
    time_of_start = "2026-11-29_04-55-15_123456"
    socket_of_ray = f"/ray/session_{time_of_start}_4194304/sockets/plasma_store"
    assert LONGEST_FOLDER + len(socket_of_ray) <= 107  # sun_path, with its closing zero, is 108


# -- CPUs ------------------------------------------------------------------------------------------


def test_a_batch_jobs_share_of_the_cpus_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert own_cpus() <= 2


# -- tokens ----------------------------------------------------------------------------------------


def test_a_ray_of_our_own_has_a_token_that_is_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with token_of_our_own():
        first = os.environ["RAY_AUTH_TOKEN"]
    with token_of_our_own():
        assert os.environ["RAY_AUTH_TOKEN"] != first
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert "RAY_AUTH_MODE" not in os.environ
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variables", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "x" * 64}])
def test_a_token_that_a_user_has_settled_stays(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with token_of_our_own():
        assert {name: os.environ[name] for name in variables} == variables
        assert os.environ.get("RAY_AUTH_TOKEN") == variables.get("RAY_AUTH_TOKEN")


@pytest.mark.parametrize(
    ("variables", "wants"),
    [
        ({}, True),
        ({"RAY_AUTH_MODE": ""}, True),
        ({"RAY_AUTH_MODE": "TOKEN", "RAY_AUTH_TOKEN": ""}, True),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, False),
        ({"RAY_AUTH_MODE": "Disabled"}, False),
    ],
)
def test_a_ray_of_our_own_wants_a_token_where_none_is_settled(
    variables: dict[str, str], wants: bool
) -> None:
    assert wants_own_token(variables) is wants


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["local", "auto", "10.0.0.7:6379", "head:6379", "[::1]:6379"])
def test_an_address_of_a_cluster_is_taken(address: str) -> None:
    assert sweep_on(address).cluster.address == address


@pytest.mark.parametrize(
    "address", ["ray://head:10001", "http://head:8265", "head", "head:", ":6379", "head:99999", ""]
)
def test_an_address_that_a_launch_cannot_run_through_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"^cluster\.address: .*HOST:PORT"):
        sweep_on(address)


def test_an_address_in_the_environment_is_held_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    assert running_cluster() == "10.0.0.7:6379"


@pytest.fixture
def greeted() -> Iterator[str]:
    """The address of a server that greets as a Ray does."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"\0\0\0\4\0\0\0\0\0")
                    connection.recv(100)

        threading.Thread(target=greet, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def stranger() -> Iterator[str]:
    """The address of a server that is no Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_is_no_ray_is_told_at_once(stranger: str) -> None:
    with pytest.raises(ConfigError, match=rf"no Ray cluster answers at {stranger} .*is no Ray"):
        check_listens(stranger)


def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:9 .*refused.*ray start --head"):
        check_listens("127.0.0.1:9")


@pytest.mark.parametrize(
    "cause", [RuntimeError("RPC error: InvalidAuthToken: missing"), AuthenticationError("no")]
)
def test_a_cluster_that_asks_for_a_token_is_told_from_one_that_is_away(
    cause: Exception, greeted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster") from cause

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(ConfigError, match=r"asks for a token.*RAY_AUTH_TOKEN"),
        ray_cluster(sweep_on(greeted), Interrupts()),
    ):
        raise AssertionError("it did start")


# -- what keeps Ray from starting ------------------------------------------------------------------


def raised(kind: str, *arguments: Any) -> Exception:
    """An error by the name of its class, as whoever raises it makes it."""
    module, _, name = kind.rpartition(".")
    made: Exception = getattr(importlib.import_module(module or "builtins"), name)(*arguments)
    return made


AT_RAYS_START = [
    raised("OSError", 36, "validate_socket_filename failed: AF_UNIX path length cannot exceed 107"),
    raised("FileNotFoundError", 2, "No such file or directory", "/nonexistent/.ray"),
    raised("PermissionError", 13, "Permission denied", "/tmp/ray/session_latest"),
    raised("OSError", 28, "No space left on device", "/tmp/ray"),
    raised("OSError", 24, "Too many open files"),
    raised("BlockingIOError", 11, "Resource temporarily unavailable"),
    raised("RuntimeError", "can't start new thread"),
    raised("ValueError", "The configured object store size exceeds /dev/shm size"),
    raised("ConnectionError", "Could not find any running Ray instance"),
    raised("TimeoutError", "The current node timed out during startup"),
    raised("Exception", "The current node has not been updated within 30 seconds"),
    raised("AssertionError"),
    raised("ray.exceptions.RaySystemError", "the raylet died"),
    raised("ray.exceptions.AuthenticationError", "the token is invalid"),
]


@pytest.mark.parametrize("place", ["here", "there"])
@pytest.mark.parametrize("error", AT_RAYS_START, ids=lambda error: type(error).__name__)
def test_what_keeps_ray_from_starting_is_one_line_with_a_remedy(
    error: Exception, place: str, greeted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    config = sweep_on("local" if place == "here" else greeted)
    with pytest.raises(RanksweepError) as told, ray_cluster(config, Interrupts()):
        raise AssertionError("it did start")

    line = str(told.value)
    start = "ray: does not start on this machine (" if place == "here" else "cluster.address: "
    assert line.startswith(start)
    assert "\n" not in line
    assert "; " in line
    assert told.value.exit_code == (1 if place == "here" else 2)
    if place == "there":
        assert re.search(r"RAY_AUTH_MODE=token and RAY_AUTH_TOKEN", line)
    elif not isinstance(error, AuthenticationError):
        assert (str(error) or type(error).__name__) in line
