"""Launches and profiles."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ranksweep.given import Config, sweep_config
from spaces.errors import RanksweepError

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

    from search.config.sweep import SweepConfig
    from search.launch.result import LaunchResult
    from search.reports.profile_figures import ProfileReport
    from spaces.profile import Profile


def launch(
    config: Config,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    store: str | None = None,
    tracking: str | None = None,
    quiet: bool = False,
) -> LaunchResult:
    """Profile if not cached, search, log, and confirm the best, as `ranksweep launch` does.

    `config` is the path of a sweep's file or what one says, in a mapping whose relative paths start
    from the working directory; `overrides` are values by dotted key, such as {"train.epochs": 3}.
    `resume` goes on with the sweep of that name where it stopped. `store` and `tracking` are URIs
    that win over the sweep's own. Progress is printed in plain lines, and what it came to at the
    end, unless it is to be `quiet`.

    A Ray that this process is connected to already is used, whatever `cluster.address` says, and is
    left running. Ctrl-C, or a notebook's interrupt, ends it cleanly with a KeyboardInterrupt, with
    all that is done kept for `resume`; again at once; a third time it ends the process.

    Raises ConfigError and other UsageErrors before anything is started where the sweep cannot be
    run as written, and Error where something fails or no trial runs to its end.
    """
    checked = sweep_config(config, overrides, store, tracking)
    result = _launched(checked, resume=resume, quiet=quiet)
    if result.failure is not None and not result.best:
        raise RanksweepError(result.failure)
    if result.failure is not None:
        warnings.warn(result.failure, stacklevel=2)
    return result


@dataclass(frozen=True)
class StoredProfile:
    """A profile and where it is: its `key` in the store `store`; `was_cached` says that it was
    there before. `kept_in` is its file where the store did not take it."""

    key: str
    profile: Profile = field(repr=False)
    store: str
    was_cached: bool
    kept_in: str | None = None

    @property
    def figures(self) -> ProfileReport:
        """The numbers of the figures that `ranksweep profiles show` draws."""
        from search.reports.profile_figures import profile_report

        return profile_report(self.profile)

    @property
    def modules(self) -> pd.DataFrame:
        """A row for each target module: its layer and kind, its rows, the rank that
        Sensitivity-LoRA gives it, how many of its rows are dominant, and their mean importance."""
        import pandas as pd

        rows = [
            {
                "name": each.name,
                "layer": each.layer,
                "kind": each.kind,
                "rows": each.rows,
                "rank": each.rank,
                "dominant": each.dominant,
                "importance": None
                if each.row_importance is None
                else float(each.row_importance.mean()),
            }
            for each in self.figures.modules
        ]
        return pd.DataFrame(rows)


def profile(
    config: Config,
    *,
    overrides: Mapping[str, Any] | None = None,
    store: str | None = None,
    tracking: str | None = None,
    quiet: bool = False,
) -> StoredProfile:
    """The profile of a sweep: from the store, or computed and kept there, as `ranksweep profile`
    does. Arguments and errors as of `launch`."""
    from search.redaction import redacted
    from search.store.profiles import ProfileStore, load_profile

    checked = sweep_config(config, overrides, store, tracking)
    result = _launched(checked, profile_only=True, quiet=quiet)
    kept = result.profile_kept_in
    return StoredProfile(
        key=result.profile_key,
        profile=load_profile(kept or result.profile_key, ProfileStore(checked.store)),
        store=redacted(checked.store),
        was_cached=result.profile_cached,
        kept_in=kept,
    )


def _launched(
    config: SweepConfig, *, resume: bool = False, profile_only: bool = False, quiet: bool
) -> LaunchResult:
    from search.cli.launch_view import drawn_launch
    from search.cli.output import plain_text
    from search.cli.view import lines_view
    from search.launch.launch import launch as launch_sweep

    to = None if quiet else sys.stdout
    with lines_view(config.name, metric=config.search.metric, to=to) as view:
        if _ray_runs():
            view.message("this process is connected to a Ray already, which the sweep uses")

        def note(result: LaunchResult) -> None:
            view.log(plain_text(drawn_launch(config, result)))

        result = launch_sweep(
            config, view=view, resume=resume, profile_only=profile_only, on_result=note
        )
    if to is not None and not profile_only:
        print(plain_text(drawn_launch(config, result)), file=to)
    return result


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
