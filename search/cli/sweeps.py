"""The commands launch, stop and profile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from search.cli.app import JsonOption, Overrides, StoreOption, SweepFile, TrackingOption, app
from search.cli.output import Result, add_row, prints_result
from search.cli.results import confirmation_table
from search.redaction import redacted
from search.wording import duration, figure, knobs

if TYPE_CHECKING:
    from rich.console import RenderableType

    from search.config.sweep import SweepConfig
    from search.launch.result import LaunchResult
    from search.study.ranking import BestChoice


@app.command()
@prints_result
def launch(
    sweep: SweepFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep of this name where it stopped.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check all and estimate the cost; start nothing."),
    ] = False,
    profile_key: Annotated[
        str | None,
        typer.Option("--profile", metavar="KEY", help="Use this profile, whatever it is of."),
    ] = None,
    store: StoreOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Profile if not cached, search, log, and confirm the best."""
    from search.config.reading import load_sweep

    use = [] if profile_key is None else [f"profile.use='{profile_key}'"]
    config = load_sweep(sweep, [*(overrides or ()), *use], store=store, tracking=tracking)
    return _dry_run(config, resume) if dry_run else _launch(config, resume=resume)


@app.command()
@prints_result
def stop(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="The sweep's name.")],
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for running steps, as a second Ctrl-C.")
    ] = False,
    json_output: JsonOption = False,
) -> Result:
    """End a sweep that another terminal runs, as Ctrl-C would; --resume goes on with it."""
    from search.launch import sweep_lock
    from search.paths import SweepPaths, check_sweep_name

    paths = SweepPaths(name=check_sweep_name(sweep)).absolute()
    runner = sweep_lock.stop(paths, at_once=now)
    return Result(
        {"name": sweep, "pid": runner.pid, "host": runner.host},
        [f"{sweep}: stopped; launch it with --resume to go on"],
    )


@app.command()
@prints_result
def profile(
    sweep: SweepFile,
    overrides: Overrides = None,
    store: StoreOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Compute the profile of a sweep, if it is not cached, and stop there."""
    from search.config.reading import load_sweep

    config = load_sweep(sweep, overrides or (), store=store, tracking=tracking)
    return _launch(config, profile_only=True)


def _dry_run(config: SweepConfig, resume: bool) -> Result:
    from search.cli.dry_run_view import drawn_dry_run
    from search.launch.dry_run import dry_run

    result = dry_run(config, resume=resume)
    return Result(result, [drawn_dry_run(result)])


def _launch(config: SweepConfig, *, resume: bool = False, profile_only: bool = False) -> Result:
    from search.cli.view import View

    with View(config.name, config.search.trials, metric=config.search.metric) as view:
        from search.launch.launch import launch as launch_sweep

        result = launch_sweep(config, resume=resume, profile_only=profile_only, view=view)
    if profile_only:
        return Result(result, _drawn_profile(config, result))
    error = ""
    if not result.best:
        reason = (
            f" ({result.reason})" if result.reason else "; see their errors above and in MLflow"
        )
        error = f"{config.name}: no trial ran to its end{reason}"
    return Result(result, _drawn_launch(config, result), error)


# -- drawing ---------------------------------------------------------------------------------------


def _profile_line(result: LaunchResult) -> str:
    where = "taken from the store" if result.profile_cached else "computed"
    return f"profile {result.profile_key} ({where})"


def _drawn_profile(config: SweepConfig, result: LaunchResult) -> Iterator[RenderableType]:
    yield _profile_line(result)
    if result.profile_kept_in is None:
        at = f" --store {redacted(config.store)}"
        yield f"  ranksweep profiles show {result.profile_key[:12]}{at}"


def _drawn_launch(config: SweepConfig, result: LaunchResult) -> Iterator[RenderableType]:
    from search.queries.comparison import resolution, verdict

    yield _profile_line(result)
    states = ", ".join(f"{count} {state}" for state, count in sorted(result.states.items()))
    took = duration(sum(result.seconds.values()))
    yield f"trials: {states or 'none'}; this launch took {took}"
    if not result.best:
        return
    title = f"best of each method on dev ({config.search.metric})"
    yield results_table(result.best, config.search.metric, title)
    if result.unranked:
        yield f"no trial ran to its end: {', '.join(result.unranked)}"
    if result.confirmation:
        yield confirmation_table(result.confirmation)
        yield verdict(result.confirmation)
        yield from resolution(result.confirmation)
    uri = redacted(result.tracking_uri)
    yield (
        "look further:\n"
        f"  ranksweep best --task {config.task.name} --tracking {uri} --top 10\n"
        f"  mlflow ui --backend-store-uri {uri}"
    )


def results_table(
    rows: Sequence[BestChoice], metric: str = "value", title: str | None = None
) -> Table:
    """A table of the best trials, best first; with how many seeds, where one was repeated."""
    repeated = any(row.seeds > 1 for row in rows)
    table = Table(
        Column("method", style="cyan"),
        Column(metric, justify="right"),
        *([Column("seeds", justify="right")] if repeated else []),
        Column("params", justify="right"),
        Column("learning rate", justify="right"),
        Column("choice", overflow="fold"),
        Column("trial", overflow="fold"),
        title=title,
        title_justify="left",
    )
    for row in rows:
        add_row(
            table,
            row.arm,
            figure(row.value),
            *([row.seeds] if repeated else []),
            f"{row.trainable_params:,}",
            figure(row.choice.get("learning_rate")),
            knobs(row.choice),
            row.number,
        )
    return table
