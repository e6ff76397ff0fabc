"""Who `tracking.also` names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

from search.config.sweep import SweepConfig
from search.paths import SweepPaths
from search.tracking.also.listener import Listener
from spaces.errors import ConfigError


def check_also(also: Sequence[str]) -> None:
    """Raises ConfigError where a package is missing that a listener is written with."""
    for name in also:
        if find_spec(name) is None:
            raise ConfigError(
                f"tracking.also: {name} is not installed; install ranksweep[{name}], or leave it "
                "out"
            )


def listeners(
    config: SweepConfig, paths: SweepPaths, mark: str, say: Callable[[str], object]
) -> dict[str, Callable[[], Listener]]:
    """Name -> what makes the listener, of a sweep whose `mark` no other sweep has."""

    def tensorboard() -> Listener:
        from search.tracking.also.tensorboard import TensorBoard

        return TensorBoard(paths.tensorboard)

    def wandb() -> Listener:
        from search.tracking.also.wandb import Wandb

        return Wandb(paths.sweep, config.tracking.experiment, str(paths.name), mark, say)

    makers = {"tensorboard": tensorboard, "wandb": wandb}
    return {name: makers[name] for name in config.tracking.also}
