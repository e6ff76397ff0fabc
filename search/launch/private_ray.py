"""What ranksweep takes of Ray beyond what it promises: after an upgrade, look here."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import (  # type: ignore[attr-defined,import-untyped,unused-ignore]
    AuthenticationTokenLoader,
    Config,
)
from ray.job_config import JobConfig

from search.launch.ray_environment import carried_path, wants_own_token

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


class OwnPath(JobConfig):  # type: ignore[misc]
    """Lets the workers import what is installed, and not what lies in the driver's directory.

    Ray puts that directory, and the one of the driver's script, before everything else on a
    worker's path, unless the job brings a working directory of its own. A `search.py` or a
    `datasets/` of the user's would then stand in for ranksweep's packages and those that it needs.
    """

    def __init__(self) -> None:
        super().__init__(_py_driver_sys_path=carried_path())

    def _runtime_env_has_working_dir(self) -> bool:
        return True


def running_cluster() -> str:
    """HOST:PORT of the cluster that RAY_ADDRESS names, else of the last that was started here.

    Raises ConnectionError where there is none.
    """
    return str(canonicalize_bootstrap_address("auto"))


def version_of_server(client: JobSubmissionClient) -> str | None:
    """The version of the Ray that a client of jobs speaks to, where that says it."""
    version = client._server_ray_version
    return None if version is None else str(version)


@contextlib.contextmanager
def token_of_our_own() -> Iterator[None]:
    """While open, a Ray that is started asks for a token that is written nowhere.

    Ray would write one to ~/.ray/auth_token, and every cluster that is started from that home
    afterwards would ask its nodes for it. Where RAY_AUTH_MODE is `disabled`, nothing is done.
    """
    if not wants_own_token(os.environ):
        yield
        return
    before = {name: os.environ.get(name) for name in _TOKEN_VARIABLES}
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        # A later launch of this process may join a cluster that asks for another token, or none.
        AuthenticationTokenLoader.instance().reset_cache()
        Config.initialize("")
