"""What Ray takes of its environment: variables, a temporary folder, CPUs and an address.

It is read before Ray is imported, for Ray reads the variables then, and by the doctor.
"""

from __future__ import annotations

import os
import re
import site
import socket
import sys
import tempfile
from collections.abc import Mapping
from importlib.machinery import PathFinder
from itertools import takewhile
from pathlib import Path

from search.config.sweep import known_address
from search.paths import nearest_there
from spaces.errors import ConfigError, JobError

_ROOT = Path(__file__).resolve().parents[2]
_FLOORS = ("search", "trainables", "spaces")
ANSWER_S = 10.0
"""How long an address to join may take to answer."""
LONGEST_FOLDER = 36
"""Bytes of the path of a folder that Ray can put its sockets into: what Linux leaves of 107 beside
`/ray/session_<time>_<process>/sockets/plasma_store`."""
_PLAIN = re.compile(r"[A-Za-z0-9._/+-]+")
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def set_ray_environment(address: str) -> None:
    """Set what is not set yet for a Ray at `address`, which is `local` or a cluster's."""
    for name, value in ray_environment(address).items():
        os.environ.setdefault(name, value)


def ray_environment(address: str) -> dict[str, str]:
    """The variables: no statistics are sent, and a Ray of our own listens on loopback alone."""
    variables = {"RAY_USAGE_STATS_ENABLED": "0"}
    if address == "local":
        # Despite its name it is read on Linux too.
        variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return variables


def own_cpus() -> int:
    """The CPUs that this process may use: less than the machine's in a container or a batch job."""
    # here, for it takes a third of a second
    from joblib import cpu_count  # type: ignore[import-untyped]

    return int(cpu_count())


def short_folder(environment: Mapping[str, str] = os.environ) -> str | None:
    """A folder for Ray's own files where the one that it would take does not do, else None.

    Ray takes RAY_TMPDIR, else TMPDIR, else /tmp, and ends where its sockets' paths get too long, as
    in a batch job's own TMPDIR, or where it cannot write.

    Raises:
        JobError: there is none.
    """
    its_own = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp"
    if _fits(its_own):
        return None
    for folder in _SHORT_FOLDERS:
        if _fits(folder):
            return f"{folder}/ray"
    raise JobError(
        f"ray: its sockets fit neither into {its_own} nor into {', '.join(_SHORT_FOLDERS)}; set "
        f"RAY_TMPDIR to a folder of at most {LONGEST_FOLDER} letters that can be written to"
    )


def _fits(folder: str) -> bool:
    if len(os.fsencode(folder)) > LONGEST_FOLDER or not _PLAIN.fullmatch(folder):
        return False
    try:
        # Asked by doing, for the permissions do not say whether a disk is read-only or full.
        tempfile.TemporaryFile(dir=nearest_there(Path(folder) / "ray")).close()
    except OSError:
        return False
    return True


def carried_path() -> list[str]:
    """What the workers get before all they have: the folder of ranksweep's packages, or nothing.

    A checkout that runs as it stands, as from its own folder or by PYTHONPATH, is carried, and so
    is what something on the path would hide. What is installed every node must have itself.
    """
    installed = {os.path.realpath(p) for p in (*site.getsitepackages(), site.getusersitepackages())}
    places = [os.path.realpath(place) for place in sys.path]
    before = list(takewhile(lambda place: place not in installed, places))
    return [str(_ROOT)] if str(_ROOT) in before or _hidden() else []


def _hidden() -> bool:
    """Whether the path alone leads to another package of the name of one of ours."""
    found = [PathFinder.find_spec(floor) for floor in _FLOORS]
    return any(each and _ROOT not in Path(each.origin or "/").parents for each in found)


def check_listens(address: str) -> None:
    """Ask whether a Ray listens at HOST:PORT; Ray itself goes on trying for minutes.

    Raises:
        ConfigError: none does, or the address is of another form.
    """
    try:
        host, _, port = known_address(address).rpartition(":")
    except ValueError as error:
        raise ConfigError(f"cluster.address: {error}") from None
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S) as line:
            reason = "" if _speaks_http2(line) else "what listens there is no Ray"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise ConfigError(
            f"cluster.address: no Ray cluster answers at {address} ({reason}); start one there "
            "with `ray start --head` or `ray up cluster.yaml`, or use local"
        )


def _speaks_http2(line: socket.socket) -> bool:
    """Whether the other side greets as a gRPC server does: with a frame of settings (RFC 9113)."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return True  # it greets whom it knows
    line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    greeting = line.recv(9)
    return greeting[3:4] == b"\4"


def local_remedy(folder: str | None = None) -> str:
    """What to look at where a Ray of our own does not start. `folder` is that of its files."""
    folder = folder or f"{os.environ.get('RAY_TMPDIR') or os.environ.get('TMPDIR') or '/tmp'}/ray"
    return (
        f"see {folder}/session_latest/logs, and that the memory, /dev/shm, the disk and "
        "`ulimit -n -u` suffice"
    )


def wants_own_token(environment: Mapping[str, str]) -> bool:
    """Whether a Ray of our own would make itself a token: it asks for one, and none is given."""
    mode = environment.get("RAY_AUTH_MODE") or "token"
    return mode.lower() == "token" and not environment.get("RAY_AUTH_TOKEN")


def token_remedy() -> str:
    """How a process gets the token that a cluster asks for."""
    return (
        "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token (on its head node: "
        "`ray get-auth-token`)"
    )
