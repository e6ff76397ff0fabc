"""Whether a launch may use a sweep's name: as a new one, or to go on with what it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from search.config.sweep import SweepConfig
from search.launch.sweep_lock import refuse_running
from search.paths import SweepPaths
from spaces.errors import ConfigError

MAY_CHANGE_ON_RESUME = ("cluster", "confirm", "store", "tracking")
SEARCH_MAY_CHANGE = ("trials", "time_budget")


def check_name(config: SweepConfig, paths: SweepPaths, resume: bool) -> None:
    """A sweep's name is used once; `resume` goes on with it where it asks for the same trials.

    Raises ConfigError.
    """
    if not paths.sweep_file.is_file():
        if resume:
            raise ConfigError(
                f"name: there is no sweep {config.name!r} in {paths.root} to resume; launch it "
                "without --resume"
            )
        return
    refuse_running(paths)
    if not resume:
        raise ConfigError(
            f"name: the sweep {config.name!r} exists in {paths.sweep}; go on with --resume or "
            "launch under another name (--set name=...)"
        )
    before = yaml.safe_load(paths.sweep_file.read_text())
    keys = list(_differing(before, config.resolved()))
    if keys:
        differ, them = ("differs", "it") if len(keys) == 1 else ("differ", "them")
        raise ConfigError(
            f"{', '.join(keys)}: {differ} from the sweep {config.name!r} that is to be resumed; "
            f"set {them} back, or launch under another name (--set name=...)"
        )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in now:
        if key in MAY_CHANGE_ON_RESUME:
            continue
        if key == "search":
            for inner in now[key]:
                if inner not in SEARCH_MAY_CHANGE and before[key].get(inner) != now[key][inner]:
                    yield f"search.{inner}"
        elif before.get(key) != now[key]:
            yield _first_difference(key, before.get(key), now[key])


def _first_difference(key: str, before: Any, now: Any) -> str:
    """The key, or that of its first part which differs where it is a mapping."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return key
    inner = next(name for name in {**now, **before} if before.get(name) != now.get(name))
    return _first_difference(f"{key}.{inner}", before.get(inner), now.get(inner))
