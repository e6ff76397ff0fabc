"""What Ray reads of the environment when it is imported; so this comes before anything does."""

from __future__ import annotations

import os


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
