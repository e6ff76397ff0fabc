"""The Ray cluster of a launch: one of its own on this machine, or the one that is named."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from search.config.sweep import SweepConfig
from search.interrupts import Interrupts
from search.launch.private_ray import OwnPath, running_cluster, token_of_our_own
from search.launch.ray_environment import (
    check_listens,
    local_remedy,
    own_cpus,
    short_folder,
    token_remedy,
)
from search.launch.ray_processes import groups_of_their_own, watched
from spaces.errors import ConfigError, JobError, one_line


@contextlib.contextmanager
def ray_cluster(
    config: SweepConfig,
    interrupts: Interrupts,
    on_death: Callable[[str], None] = lambda _what: None,
) -> Iterator[None]:
    """While open, this process is connected to the cluster, unless it was before.

    `on_death` hears what has died of one of its own, from a thread.

    One of its own listens on loopback alone where `set_ray_environment` was called before this file
    was imported.

    Raises:
        ConfigError: no cluster answers at the address, or it asks for another token.
        JobError: a Ray of our own does not start on this machine.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = config.cluster.address
    with token_of_our_own() if address == "local" else contextlib.nullcontext():
        if address == "local":
            _start()
        else:
            _join(address)
        try:
            interrupts.listen()
            with watched(on_death) if address == "local" else contextlib.nullcontext():
                yield
        finally:
            ray.shutdown()


def _options() -> dict[str, Any]:
    return {"log_to_driver": False, "logging_level": logging.ERROR, "job_config": OwnPath()}


def _start() -> None:
    folder = short_folder()
    # one CPU more than there are, for the light trials; they only wait
    options = {**_options(), "num_cpus": own_cpus() + 1, "include_dashboard": False}
    if folder is not None:
        options["_temp_dir"] = folder
    try:
        with groups_of_their_own():
            ray.init(address="local", **options)
    except Exception as error:  # whatever keeps its processes from starting, it is this machine's
        ray.shutdown()  # what has started of them
        raise JobError(
            f"ray: does not start on this machine ({one_line(error)}); {local_remedy(folder)}"
        ) from error


def _join(address: str) -> None:
    try:
        check_listens(running_cluster() if address == "auto" else address)
        ray.init(address=address, **_options())
    except ConfigError:
        raise
    except Exception as error:
        if _asks_for_a_token(error):
            raise ConfigError(
                f"cluster.address: the cluster at {address} asks for a token, or for another than "
                f"this launch has; {token_remedy()}"
            ) from error
        raise ConfigError(
            f"cluster.address: no Ray cluster answers at {address} ({one_line(error)}); start one "
            "with `ray start --head` or `ray up cluster.yaml`, or use local; where the cluster "
            f"asks for a token, {token_remedy()}"
        ) from error


def _asks_for_a_token(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, AuthenticationError) or "InvalidAuthToken" in str(error):
            return True
        error = error.__cause__
    return False
