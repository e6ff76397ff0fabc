"""The Ray cluster of a launch: one of its own on this machine, or the one that is named."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import ray

from search.config.sweep import SweepConfig
from search.interrupts import Interrupts
from search.launch.ray_processes import groups_of_their_own, watched
from spaces.errors import ConfigError


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
    """
    if ray.is_initialized():
        yield
        return
    _check_address(config.cluster.address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if config.cluster.address == "local":
        # one CPU more than there are, for the light trials; they only wait
        cpus = (os.cpu_count() or 1) + 1
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    else:
        options |= {"address": config.cluster.address}
    try:
        with groups_of_their_own():
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"cluster.address: no Ray cluster answers at {config.cluster.address} ({reason}); "
            "start one with `ray start --head` or `ray up cluster.yaml`, or use local; set "
            "RAY_AUTH_MODE=token where the cluster asks for one"
        ) from error
    try:
        interrupts.listen()
        own = config.cluster.address == "local"
        with watched(on_death) if own else contextlib.nullcontext():
            yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Ray itself goes on trying for minutes where nobody listens."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(
            f"cluster.address: nobody listens at {address} ({error.strerror or error}); start Ray "
            "there with `ray start --head` or `ray up cluster.yaml`, or use local"
        ) from None
