"""The commands launch, stop and profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from search.cli.app import JsonOption, Overrides, StoreOption, SweepFile, TrackingOption, app
from search.cli.jobs import (
    AddressOption,
    DetachOption,
    RemoteFolderOption,
    SharedOption,
    SubmitOption,
    dry_submission,
    refuse_gone,
    refuse_without_submit,
    stop_job,
    submit_sweep,
)
from search.cli.output import Result, plain_text, prints_result
from spaces.errors import RanksweepError

if TYPE_CHECKING:
    from search.config.sweep import SweepConfig
    from search.launch.result import LaunchResult


@app.command()
@prints_result
def launch(
    sweep: SweepFile,
    *,
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
    submit: SubmitOption = None,
    detach: DetachOption = False,
    remote_folder: RemoteFolderOption = None,
    shared: SharedOption = False,
    scheduled_by: Annotated[
        str | None,
        typer.Option("--scheduled-by", hidden=True, help="The schedule that launches the sweep."),
    ] = None,
    base_name: Annotated[
        str | None,
        typer.Option("--base-name", hidden=True, help="What the base is a version of."),
    ] = None,
    store: StoreOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Profile if not cached, search, log, and confirm the best."""
    from search.config.reading import load_sweep

    use = [] if profile_key is None else [f"profile.use='{profile_key}'"]
    overrides = [*(overrides or ()), *use]
    if submit is not None:
        from search.launch.submission.order import Order

        order = Order(
            file=sweep,
            overrides=tuple(overrides),
            store=store,
            tracking=tracking,
            resume=resume,
            scheduled_by=scheduled_by,
            base_name=base_name,
            remote_folder=remote_folder,
            shared=shared,
        )
        if dry_run:
            return dry_submission(submit, order)
        return submit_sweep(submit, order, detach=detach)
    refuse_without_submit(detach=detach, remote_folder=remote_folder, shared=shared)
    config = load_sweep(sweep, overrides, store=store, tracking=tracking)
    if dry_run:
        return _dry_run(config, resume)
    return run_launch(config, resume=resume, scheduled_by=scheduled_by, base_name=base_name)


@app.command()
@prints_result
def stop(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="The sweep's name.")],
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for running steps, as a second Ctrl-C.")
    ] = False,
    gone: Annotated[
        bool,
        typer.Option("--gone", help="Close the record of a launch that is dead, wherever it ran."),
    ] = False,
    address: AddressOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """End a sweep that another terminal or a cluster runs, as Ctrl-C would; --resume goes on.

    Where its launch is gone, its record in MLflow is closed.
    """
    refuse_gone(gone, address)
    if address is not None:
        return stop_job(sweep, address, now=now)
    from search.config.reading import resolve_tracking
    from search.launch import sweep_lock
    from search.launch.closing import close_what_is_gone, tracking_of
    from search.paths import SweepPaths, check_sweep_name
    from search.tracking.liveness import running

    paths = SweepPaths(name=check_sweep_name(sweep)).absolute()
    if running(paths) is not None:
        runner = sweep_lock.stop(paths, at_once=now)
        return Result(
            {"name": sweep, "pid": runner.pid, "host": runner.host, "closed": []},
            [f"{sweep}: stopped; launch it with --resume to go on"],
        )
    uri = tracking or tracking_of(paths) or resolve_tracking()
    closed = close_what_is_gone(paths, uri, gone=gone)
    return Result(
        {"name": sweep, "pid": None, "host": None, "closed": closed},
        [f"{sweep}: its launch was gone; its record is closed as interrupted, --resume goes on"],
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
    return run_launch(config, profile_only=True)


def _dry_run(config: SweepConfig, resume: bool) -> Result:
    from search.cli.dry_run_view import drawn_dry_run
    from search.launch.dry_run import dry_run

    result = dry_run(config, resume=resume)
    return Result(result, [drawn_dry_run(result)])


def run_launch(
    config: SweepConfig,
    *,
    resume: bool = False,
    profile_only: bool = False,
    scheduled_by: str | None = None,
    base_name: str | None = None,
) -> Result:
    """Run a sweep in this process, shown as it goes; what it came to."""
    from search.cli.launch_view import drawn_launch, drawn_profile
    from search.cli.view import View

    known: list[LaunchResult] = []
    with View(config.name, metric=config.search.metric) as view:
        from search.launch.launch import launch as launch_sweep

        def note(result: LaunchResult) -> None:
            known.append(result)
            view.log(plain_text(drawn_launch(config, result)))

        try:
            result = launch_sweep(
                config,
                resume=resume,
                profile_only=profile_only,
                scheduled_by=scheduled_by,
                base_name=base_name,
                view=view,
                on_result=note,
            )
        except (KeyboardInterrupt, RanksweepError) as cut_off:
            if not known:
                raise
            return Result(known[-1], drawn_launch(config, known[-1]), cut_off)
    if profile_only:
        return Result(result, drawn_profile(config, result))
    return Result(result, drawn_launch(config, result), result.failure or "")
