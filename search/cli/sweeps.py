"""The commands launch, stop and profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from search.cli.app import JsonOption, Overrides, StoreOption, SweepFile, TrackingOption, app
from search.cli.output import logs_on_stderr, print_result
from search.wording import figure, knobs
from spaces.errors import RanksweepError

if TYPE_CHECKING:
    from search.config.sweep import SweepConfig
    from search.launch.result import LaunchResult


@app.command()
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
) -> None:
    """Profile if not cached, search, log, and confirm the best."""
    from search.config.reading import load_sweep

    overrides = list(overrides or ())
    if profile_key is not None:
        overrides.append(f"profile.use='{profile_key}'")
    config = load_sweep(sweep, overrides, store=store, tracking=tracking)
    if dry_run:
        _show_dry_run(config, json_output, resume)
    else:
        _launch(config, json_output, resume=resume)


@app.command()
def stop(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="The sweep's name.")],
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for running steps, as a second Ctrl-C.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """End a sweep that another terminal runs, as Ctrl-C would; --resume goes on with it."""
    from rich.text import Text

    from search.launch import sweep_lock
    from search.paths import SweepPaths, check_sweep_name

    paths = SweepPaths(name=check_sweep_name(sweep)).absolute()
    runner = sweep_lock.stop(paths, at_once=now)
    if json_output:
        print_result({"name": sweep, "pid": runner.pid, "host": runner.host}, json_output)
    else:
        print_result(Text(f"{sweep}: stopped; launch it with --resume to go on"))


@app.command()
def profile(
    sweep: SweepFile,
    overrides: Overrides = None,
    store: StoreOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> None:
    """Compute the profile of a sweep, if it is not cached, and stop there."""
    from search.config.reading import load_sweep

    config = load_sweep(sweep, overrides or (), store=store, tracking=tracking)
    _launch(config, json_output, profile_only=True)


def _show_dry_run(config: SweepConfig, json_output: bool, resume: bool) -> None:
    with logs_on_stderr():
        from search.launch.dry_run import dry_run

        result = dry_run(config, resume=resume)
    print_result(result.as_dict() if json_output else result.render(), json_output)


def _launch(
    config: SweepConfig, json_output: bool, *, resume: bool = False, profile_only: bool = False
) -> None:
    from search.cli.view import View

    with (
        logs_on_stderr(),
        View(config.name, config.search.trials, metric=config.search.metric) as view,
    ):
        from search.launch.launch import launch as launch_sweep

        result = launch_sweep(config, resume=resume, profile_only=profile_only, view=view)
    if json_output:
        print_result(result.as_dict(), json_output)
    else:
        _print_launch(config, result, profile_only)
    if not profile_only and not result.best:
        raise RanksweepError(
            f"{config.name}: no trial ran to its end"
            + (f" ({result.reason})" if result.reason else "; see their errors above and in MLflow")
        )


def _print_launch(config: SweepConfig, result: LaunchResult, profile_only: bool) -> None:
    from rich.text import Text

    from search.cli.results import confirmation_table
    from search.queries.comparison import verdict
    from search.redaction import redacted
    from search.wording import duration

    where = "taken from the store" if result.profile_cached else "computed"
    print_result(Text(f"profile {result.profile_key} ({where})"))
    if profile_only:
        if result.profile_kept_in is None:
            at = f" --store {redacted(config.store)}"
            print_result(Text(f"  ranksweep profiles show {result.profile_key[:12]}{at}"))
        return
    states = ", ".join(f"{count} {state}" for state, count in sorted(result.states.items()))
    took = duration(sum(result.seconds.values()))
    print_result(Text(f"trials: {states or 'none'}; this launch took {took}"))
    if not result.best:
        return
    title = f"best of each method on dev ({config.search.metric})"
    print_result(results_table(result.best, config.search.metric, title))
    if result.unranked:
        print_result(Text(f"no trial ran to its end: {', '.join(result.unranked)}"))
    if result.confirmation:
        print_result(confirmation_table(result.confirmation))
        print_result(Text(verdict(result.confirmation)))
    uri = redacted(result.tracking_uri)
    print_result(
        Text(
            "look further:\n"
            f"  ranksweep best --task {config.task.name} --tracking {uri} --top 10\n"
            f"  mlflow ui --backend-store-uri {uri}"
        )
    )


def results_table(
    rows: Sequence[Mapping[str, Any]],
    metric: str = "value",
    title: str | None = None,
) -> Table:
    """A table of the best trials: one row each, `rows` best first.

    A row has `method` (or `arm`), `value`, `trainable_params` and `choice` (a mapping with
    learning_rate and the method's own keys); `number` or `run_id` names the trial. What is absent
    shows as "-". Where a choice was trained with several seeds, `seeds` says with how many.
    """
    repeated = any(row.get("seeds", 1) > 1 for row in rows)
    table = Table(title=title, title_justify="left")
    table.add_column("method", style="cyan")
    table.add_column(metric, justify="right")
    if repeated:
        table.add_column("seeds", justify="right")
    table.add_column("params", justify="right")
    table.add_column("learning rate", justify="right")
    table.add_column("choice", overflow="fold")
    table.add_column("trial", overflow="fold")
    for row in rows:
        choice = dict(row.get("choice") or {})
        params = row.get("trainable_params")
        trial = row.get("number", row.get("run_id"))
        cells = (
            str(row.get("arm", row.get("method", choice.get("method", "-")))),
            figure(row.get("value")),
            *([str(row.get("seeds", 1))] if repeated else []),
            f"{int(params):,}" if params is not None else "-",
            figure(choice.get("learning_rate", row.get("learning_rate"))),
            knobs(choice),
            "-" if trial is None else str(trial),
        )
        # Text, for what a run says of itself is not to be read as Rich's markup.
        table.add_row(*(Text(cell) for cell in cells))
    return table
