"""ranksweep in Python: what the commands do, for a notebook or a script of one's own.

    import ranksweep

    result = ranksweep.launch("sweep.yaml", overrides={"search.trials": 10})
    ranksweep.best("my-task", top=5)

Nothing heavy is imported before it is needed. What goes wrong is raised as `ranksweep.Error`, with
the line that the command would print.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ranksweep.own_packages import find_own_packages

find_own_packages()

from spaces.errors import ConfigError, UsageError  # noqa: E402  (found by the line above)
from spaces.errors import RanksweepError as Error  # noqa: E402

if TYPE_CHECKING:
    from ranksweep.models import LoadedModel, load, predict
    from ranksweep.plans import Count, count, peft_config, plan
    from ranksweep.results import best, compare, frame, history, report
    from ranksweep.sweeps import StoredProfile, launch, profile
    from search.queries.filters import Filters

    __version__: str

__all__ = [
    "ConfigError",
    "Count",
    "Error",
    "Filters",
    "LoadedModel",
    "StoredProfile",
    "UsageError",
    "__version__",
    "best",
    "compare",
    "count",
    "frame",
    "history",
    "launch",
    "load",
    "peft_config",
    "plan",
    "predict",
    "profile",
    "report",
]

_MODULES = {
    "sweeps": ("StoredProfile", "launch", "profile"),
    "plans": ("Count", "count", "peft_config", "plan"),
    "results": ("Filters", "best", "compare", "frame", "history", "report"),
    "models": ("LoadedModel", "load", "predict"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ranksweep' has no attribute {name!r}")
    found = getattr(import_module(f"ranksweep.{_MODULE_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__


def _version() -> str:
    """That of what is installed; "0+unknown" of files that run without being installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ranksweep")
    except PackageNotFoundError:
        return "0+unknown"
