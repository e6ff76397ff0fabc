"""The command line `ranksweep`: what a user types, and nothing of how it is done.

Results go to stdout, everything else to stderr. Exit codes: 0, 1 (failed, nothing found), 2 (bad
usage or config, told on one line before anything is started), 130 (Ctrl-C). The heavy packages are
imported by the commands that need them, so that help and errors come at once.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spaces.errors import BaseModelError, ConfigError, RanksweepError, StoreError, TrackingError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from search.config import SweepConfig
    from search.launch import LaunchResult
    from search.profile_report import ProfileReport
    from search.queries import ProfileUse
    from search.store import ProfileStore
    from spaces.plan import Plan
    from spaces.profile import Profile
    from spaces.target import BaseSize, TargetModule

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
PIPE_WIDTH = 160

app = typer.Typer(
    name="ranksweep",
    help="Finds how to spend low-rank adaptation capacity: one profile, many cheap trials.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
profiles_app = typer.Typer(help="What the store of profiles holds.", no_args_is_help=True)
app.add_typer(profiles_app, name="profiles")

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="The sweep.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, such as train.epochs=5."),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URI",
        help="Store of profiles; else the sweep's, RANKSWEEP_STORE, file://.ranksweep/store.",
    ),
]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking",
        metavar="URI",
        help="MLflow tracking; else the sweep's, MLFLOW_TRACKING_URI, .ranksweep/mlflow.db.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON document on stdout.")
]
ChoiceFile = Annotated[
    Path, typer.Option("--choice", metavar="CHOICE.yaml", help="A method and its settings.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"ranksweep {version('ranksweep')}")
        except PackageNotFoundError:
            print("ranksweep (not installed)")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options of every command; `main` reads --debug itself, for it must know of every error."""


# -- sweeps ----------------------------------------------------------------------------------------


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
    from search.config import load_sweep

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

    from search import sweep_lock
    from search.paths import SweepPaths, check_sweep_name

    paths = SweepPaths(name=check_sweep_name(sweep)).absolute()
    runner = sweep_lock.stop(paths, at_once=now)
    if json_output:
        _print_result({"name": sweep, "pid": runner.pid, "host": runner.host}, json_output)
    else:
        _print_result(Text(f"{sweep}: stopped; launch it with --resume to go on"))


@app.command()
def profile(
    sweep: SweepFile,
    overrides: Overrides = None,
    store: StoreOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> None:
    """Compute the profile of a sweep, if it is not cached, and stop there."""
    from search.config import load_sweep

    config = load_sweep(sweep, overrides or (), store=store, tracking=tracking)
    _launch(config, json_output, profile_only=True)


def _show_dry_run(config: SweepConfig, json_output: bool, resume: bool) -> None:
    with _logs_on_stderr():
        from search.dry_run import dry_run

        result = dry_run(config, resume=resume)
    _print_result(result.as_dict() if json_output else result.render(), json_output)


def _launch(
    config: SweepConfig, json_output: bool, *, resume: bool = False, profile_only: bool = False
) -> None:
    from search.live import View

    with (
        _logs_on_stderr(),
        View(config.name, config.search.trials, metric=config.search.metric) as view,
    ):
        from search.launch import launch as launch_sweep

        result = launch_sweep(config, resume=resume, profile_only=profile_only, view=view)
    if json_output:
        _print_result(result.as_dict(), json_output)
    else:
        _print_launch(config, result, profile_only)
    if not profile_only and not result.best:
        raise RanksweepError(
            f"{config.name}: no trial ran to its end"
            + (f" ({result.reason})" if result.reason else "; see their errors above and in MLflow")
        )


def _print_launch(config: SweepConfig, result: LaunchResult, profile_only: bool) -> None:
    from rich.text import Text

    from search.confirm import confirmation_table, verdict
    from search.live import duration, results_table
    from trainables.private import redacted

    where = "taken from the store" if result.profile_cached else "computed"
    _print_result(Text(f"profile {result.profile_key} ({where})"))
    if profile_only:
        if result.profile_kept_in is None:
            at = f" --store {redacted(config.store)}"
            _print_result(Text(f"  ranksweep profiles show {result.profile_key[:12]}{at}"))
        return
    states = ", ".join(f"{count} {state}" for state, count in sorted(result.states.items()))
    took = duration(sum(result.seconds.values()))
    _print_result(Text(f"trials: {states or 'none'}; this launch took {took}"))
    if not result.best:
        return
    title = f"best of each method on dev ({config.search.metric})"
    _print_result(results_table(result.best, config.search.metric, title))
    if result.unranked:
        _print_result(Text(f"no trial ran to its end: {', '.join(result.unranked)}"))
    if result.confirmation:
        _print_result(confirmation_table(result.confirmation))
        _print_result(Text(verdict(result.confirmation)))
    uri = redacted(result.tracking_uri)
    _print_result(
        Text(
            "look further:\n"
            f"  ranksweep best --task {config.task.name} --tracking {uri} --top 10\n"
            f"  mlflow ui --backend-store-uri {uri}"
        )
    )


# -- profiles --------------------------------------------------------------------------------------


@profiles_app.command("list")
def profiles_list(
    store: StoreOption = None, tracking: TrackingOption = None, json_output: JsonOption = False
) -> None:
    """List the profiles of the store, who made them, at what cost, and how many runs use them."""
    from search.profile_report import profiles_json, profiles_table

    opened = _store(store)
    manifests = opened.list()
    uses = _uses_where_known(tracking) if manifests else {}
    if json_output:
        _print_result(profiles_json(manifests, uses), json_output)
    else:
        _print_result(
            profiles_table(manifests, uses) if manifests else f"no profiles in {opened.name}"
        )


def _uses_where_known(tracking: str | None) -> Mapping[str, ProfileUse] | None:
    """Key -> its uses; None, said in one line, where tracking cannot be reached."""
    from search.config import resolve_tracking

    try:
        with _logs_on_stderr():
            from search.queries import profile_uses

            return profile_uses(resolve_tracking(tracking))
    except TrackingError as error:
        print(f"not known which runs use the profiles: {error}", file=sys.stderr)
        return None


@profiles_app.command("show")
def profiles_show(
    reference: Annotated[
        str,
        typer.Argument(metavar="KEY", help="A key, or its first digits; or a profile's file."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write the figures as PNG into this folder."),
    ] = None,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show one profile: what it is of, its rank budget, row importance and dominant rows."""
    import yaml
    from rich.text import Text

    from search.profile_report import TerminalFigures, profile_report, profile_summary

    loaded, manifest = _profile_and_manifest(reference, store)
    report = profile_report(loaded)
    files = _pictures(report, out) if out is not None else []
    summary = profile_summary(loaded, manifest, report)
    if json_output:
        figures = {"figures": report.as_dict(), "files": files}
        _print_result({**summary, **figures}, json_output)
        return
    _print_result(Text(yaml.safe_dump(summary, sort_keys=True).rstrip()))
    _print_result(TerminalFigures(report))
    for file in files:
        _print_result(Text(f"wrote {file}"))


def _profile_and_manifest(
    reference: str, store: str | None
) -> tuple[Profile, Mapping[str, Any] | None]:
    """A profile of the store and its manifest, or a profile's file, which has none."""
    if Path(reference).suffix == ".safetensors":
        return _load_profile(reference, store), None
    opened = _store(store)
    key = opened.resolve(reference)
    manifest = opened.manifest(key)
    if manifest is None:
        raise RanksweepError(
            f"profile: the manifest of {key} cannot be read; run `ranksweep profiles verify {key}`"
        )
    return _load_profile(key, store), manifest


def _pictures(report: ProfileReport, folder: Path) -> list[str]:
    with _logs_on_stderr():
        from search.profile_pictures import write_pictures

        return [str(file) for file in write_pictures(report, folder)]


@profiles_app.command("verify")
def profiles_verify(
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="A key, or its first digits; else all.")
    ] = None,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> None:
    """Read profiles back and check every byte; what is damaged goes to quarantine."""
    from rich.table import Table

    opened = _store(store)
    checked = opened.verify(opened.resolve(key) if key is not None else None)
    if json_output:
        documents = [{"key": each.key, "ok": each.ok, "detail": each.detail} for each in checked]
        _print_result(documents, json_output)
    else:
        table = Table("key", "verified")
        table.add_column("detail", overflow="fold")
        for each in checked:
            mark = "[green]yes[/]" if each.ok else "[red]no[/]"
            table.add_row(each.key[:12], mark, _shown(each.detail))
        _print_result(table)
    if not all(each.ok for each in checked):
        raise typer.Exit(EXIT_FAILED)


@profiles_app.command("remove")
def profiles_remove(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key, or its first digits.")],
    force: Annotated[
        bool, typer.Option("--force", help="Remove it whatever uses it; MLflow is not asked.")
    ] = False,
    store: StoreOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> None:
    """Remove one profile from the store, unless runs in MLflow use it."""
    from rich.text import Text

    opened = _store(store)
    resolved = opened.resolve(key)
    if not force:
        _refuse_where_used(resolved, tracking)
    removed = opened.remove(resolved)
    if json_output:
        _print_result({"key": resolved, "removed": removed}, json_output)
    elif removed:
        _print_result(Text(f"removed {resolved}"))
    if not removed:
        raise typer.Exit(EXIT_FAILED)


def _refuse_where_used(key: str, tracking: str | None) -> None:
    """Raise an error unless MLflow is there and says that no run uses the profile."""
    from search.config import resolve_tracking

    try:
        with _logs_on_stderr():
            from search.queries import profile_uses

            use = profile_uses(resolve_tracking(tracking), key).get(key)
    except TrackingError as error:
        raise TrackingError(
            f"profile: {key[:12]} is not removed, for which runs use it is not known ({error}); "
            "or remove it all the same with --force"
        ) from error
    if use is not None:
        raise StoreError(
            f"profile: {key[:12]} is not removed: {use.sentence} it; remove it all the same with "
            "--force"
        )


def _store(option: str | None) -> ProfileStore:
    from search.config import resolve_store
    from search.store import ProfileStore

    return ProfileStore(resolve_store(option))


# -- plans -----------------------------------------------------------------------------------------


@app.command()
def plan(
    *,
    choice_file: ChoiceFile,
    profile_ref: Annotated[
        str | None,
        typer.Option("--profile", metavar="FILE|KEY", help="A profile: its file or its key."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="The base, for a choice without a profile."),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option("--targets", metavar="a,b,c", help="With --base: suffixes, or all-linear."),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", metavar="KIND", help="With --base: kind of task.")
    ] = "classification",
    form: Annotated[
        Literal["peft"] | None,
        typer.Option("--as", help="Give the LoraConfig of PEFT that the choice means."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write PLAN.safetensors, or adapter_config.json, here."
        ),
    ] = None,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> None:
    """Derive the plan that a choice means for a profiled base."""
    from search.config import read_mapping
    from spaces.methods import make_plan, parse_choice

    if (profile_ref is None) == (base is None):
        raise ConfigError(
            "--profile: give either a profile, or --base and --targets for a choice that needs none"
        )
    if (base is None) != (targets is None):
        raise ConfigError(
            "--targets: goes with --base; list suffixes such as query,value (a profile knows its "
            "own modules)"
        )
    choice = parse_choice(read_mapping(choice_file))
    if profile_ref is not None:
        loaded = _load_profile(profile_ref, store)
        made = make_plan(choice, loaded.targets, loaded)
    else:
        assert base is not None
        assert targets is not None
        found, size = _targets_of(base, kind, targets)
        made = make_plan(choice, found, None, size)
    if form == "peft":
        _give_lora_config(made, out, json_output)
        return
    if out is not None:
        _write(out, made.to_bytes())
    if json_output:
        _print_result(made.summary(), json_output)
    else:
        _print_result(_plan_table(made))


def _give_lora_config(made: Plan, out: Path | None, json_output: bool) -> None:
    """Write or print the LoraConfig of a plan; printed, it is JSON in any case."""
    from rich.text import Text

    from search.allocation import allocation

    config = allocation(made)
    if out is not None:
        _write(out, (json.dumps(config, indent=2) + "\n").encode())
    if out is None or json_output:
        _print_result(config, json_output=True)
    else:
        _print_result(Text(f"wrote {out}"))


def _write(out: Path, data: bytes) -> None:
    try:
        out.write_bytes(data)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"--out: {out} cannot be written ({reason}); name another") from None


def _targets_of(base: str, kind: str, targets: str) -> tuple[tuple[TargetModule, ...], BaseSize]:
    """The modules of a base that suffixes name, and its size, from its config alone."""
    patterns = tuple(part.strip() for part in targets.split(",") if part.strip())
    if not patterns:
        raise ConfigError("--targets: names no module; list suffixes such as query,value")
    with _logs_on_stderr():
        from trainables.bases import meta_base

        try:
            return meta_base(base, kind, 2, patterns)
        except BaseModelError as error:
            raise ConfigError(str(error).replace("profile.target_modules", "--targets")) from None


def _load_profile(reference: str, store: str | None) -> Profile:
    from search.store import load_profile

    if Path(reference).suffix == ".safetensors" and not Path(reference).is_file():
        raise ConfigError(f"--profile: {reference} is no file; give a profile's file or its key")
    return load_profile(reference, _store(store))


def _plan_table(made: Plan) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shapes = {target.name: target.shape for target in made.targets}
    table = Table(
        title=f"{made.trainable_params:,} parameters, {made.peak_trainable_params:,} at one time",
        title_justify="left",
    )
    for name in ("stage", "modules", "rank", "rows", "cols", "params"):
        table.add_column(name, justify="right")
    for number, stage in enumerate(made.stages):
        blocks = [block for each in stage.values() for block in each]
        first = {name: each[0] for name, each in stage.items()}
        ranks = [block.rank for block in blocks]
        table.add_row(
            str(number),
            f"{len(stage)} of {len(made.targets)}",
            _range(min(ranks, default=0), max(ranks, default=0)),
            _share(sum(len(b.rows) for b in first.values()), sum(shapes[n][0] for n in first)),
            _share(sum(len(b.cols) for b in first.values()), sum(shapes[n][1] for n in first)),
            f"{sum(block.params for block in blocks):,}",
        )
    return Group(table, Text(f"digest {made.digest}"))


@app.command()
def count(
    *,
    base: Annotated[
        str,
        typer.Option("--base", metavar="BASE", help="hub:org/name, path:DIR or package:name/dir."),
    ],
    targets: Annotated[
        str,
        typer.Option("--targets", metavar="a,b,c", help="Suffixes of module names, or all-linear."),
    ],
    choice_file: ChoiceFile,
    kind: Annotated[
        str,
        typer.Option("--kind", metavar="KIND", help="Kind of task to put a head on for."),
    ] = "classification",
    dominant_fraction: Annotated[
        float | None,
        typer.Option(
            "--dominant-fraction", metavar="F", help="Share of the rows taken to be dominant."
        ),
    ] = None,
    profile_ref: Annotated[
        str | None,
        typer.Option("--profile", metavar="FILE|KEY", help="Count exactly, by this profile."),
    ] = None,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> None:
    """Count the trainable parameters of a choice from the base's config; no weights are read."""
    from search.config import read_mapping
    from spaces.methods import count_range, make_plan, parse_choice

    choice = parse_choice(read_mapping(choice_file))
    if dominant_fraction is not None and profile_ref is not None:
        raise ConfigError("--dominant-fraction: contradicts --profile; give one of the two")
    if dominant_fraction is not None and not 0 <= dominant_fraction <= 1:
        raise ConfigError(f"--dominant-fraction: {dominant_fraction} is no share; use 0 to 1")
    loaded = _load_profile(profile_ref, store) if profile_ref is not None else None
    found, size = _targets_of(base, kind, targets)
    with _logs_on_stderr():
        from search.dry_run import base_parameters

        whole = base_parameters(base)
    if loaded is not None:
        exact = make_plan(choice, found, loaded, size).trainable_params
        least, most = exact, exact
    else:
        least, most = count_range(choice, found, dominant_fraction, size)
    _print_count(base, choice.method, len(found), (least, most), whole, json_output)


def _print_count(
    base: str, method: str, modules: int, span: tuple[int, int], whole: int, json_output: bool
) -> None:
    from rich.table import Table

    least, most = span
    percents = [100 * least / whole, 100 * most / whole]
    if json_output:
        document = {
            "method": method,
            "base": base,
            "base_params": whole,
            "modules": modules,
            "exact": least == most,
            "trainable_params": least if least == most else [least, most],
            "percent": percents[0] if least == most else percents,
        }
        _print_result(document, json_output)
        return
    table = Table("method", "modules", "params", "% of the base")
    shares = [f"{percent:.3f}" for percent in percents]
    table.add_row(
        method,
        str(modules),
        _range(least, most),
        shares[0] if least == most else f"{shares[0]} to {shares[1]}",
    )
    _print_result(table)


# -- looking back, looking around ------------------------------------------------------------------


@app.command()
def best(
    *,
    task: Annotated[str, typer.Option("--task", metavar="T", help="Name of the task.")],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="B", help="Part of the base's name, or its fingerprint."),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", metavar="M", help="Only trials of this method.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="M", help="Rank by this metric, not the searched one."),
    ] = None,
    max_params: Annotated[
        int | None, typer.Option("--max-params", metavar="N", help="At most N parameters.")
    ] = None,
    top: Annotated[
        int | None, typer.Option("--top", metavar="K", help="How many to show; default 1.")
    ] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="The front of metric against parameters.")
    ] = False,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show the best complete trials of a task, from MLflow alone."""
    from search.config import resolve_tracking

    uri = resolve_tracking(tracking)
    with _logs_on_stderr():
        from search import queries

        rows = queries.best(
            uri,
            task,
            base=base,
            method=method,
            metric=metric,
            max_params=max_params,
            top=top,
            pareto=pareto,
        )
        why_none = ""
        if not rows:
            why_none = queries.why_none(
                uri, task, base=base, method=method, metric=metric, max_params=max_params
            )
    if json_output:
        _print_result(queries.best_json(rows), json_output)
    elif rows:
        _print_result(queries.best_table(rows))
    if why_none:
        raise RanksweepError(why_none)


@app.command()
def compare(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's name or run id.")],
    against: Annotated[
        str, typer.Option("--against", metavar="ARM", help="What the others are set beside.")
    ] = "lora",
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> None:
    """Set a sweep's methods side by side on test, as confirmed, from MLflow alone."""
    from rich.text import Text

    from search.config import resolve_tracking

    with _logs_on_stderr():
        from search import confirm
        from search.compare import compare as compared

        rows = [row.as_dict() for row in compared(resolve_tracking(tracking), sweep, against)]
    if json_output:
        document = {"choices": rows, "verdict": confirm.verdict(rows, against)}
        _print_result(document, json_output)
    else:
        _print_result(confirm.confirmation_table(rows, against))
        _print_result(Text(confirm.verdict(rows, against)))


@app.command("export")
def export_trial(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A trial, as `best` shows it.")],
    form: Annotated[
        Literal["peft", "merged", "plan"],
        typer.Option("--to", help="A PEFT checkpoint, a plain one of transformers, or the masks."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Write here: a folder that is not there.")
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="Where the trial's base is now."),
    ] = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> None:
    """Write a trained trial as a checkpoint that others load, or its plan."""
    from rich.text import Text

    from search.config import resolve_tracking

    with _logs_on_stderr():
        from search.export import export

        written = export(resolve_tracking(tracking), run_id, form, out, base)
    if json_output:
        _print_result(written, json_output)
    else:
        files = "".join(f"\n  {name}" for name in written["files"])
        _print_result(Text(f"wrote {written['out']}{files}"))


@app.command("compose")
def compose_trials(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="A trial, as `best` shows it.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="Another, of the same base.")],
    split: Annotated[
        Literal["test", "dev"], typer.Option("--split", help="The split that is measured.")
    ] = "test",
    rows: Annotated[
        int | None, typer.Option("--rows", metavar="N", help="Measure at most N rows of it.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="Where the trials' base is now."),
    ] = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> None:
    """Add the updates of two trials to one base and measure both tasks."""
    from search.config import resolve_tracking

    with _logs_on_stderr():
        from search.compose import compose

        uri = resolve_tracking(tracking)
        composition = compose(uri, (run_a, run_b), split, rows, base)
    _print_result(composition.as_dict() if json_output else composition.table(), json_output)


@app.command()
def doctor(
    address: Annotated[
        str,
        typer.Option("--address", metavar="RAY", help="Ray to ask: local, auto or an address."),
    ] = "local",
    store: StoreOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> None:
    """Say what this machine or cluster can run, and why not."""
    from search.config import resolve_store, resolve_tracking

    with _logs_on_stderr():
        from search import doctor as physician

        checks = physician.examine(resolve_store(store), resolve_tracking(tracking), address)
    if json_output:
        _print_result(physician.checks_json(checks), json_output)
    else:
        _print_result(physician.checks_table(checks))
    if physician.exit_code(checks):
        raise typer.Exit(physician.exit_code(checks))


# -- output ----------------------------------------------------------------------------------------


@contextmanager
def _logs_on_stderr() -> Iterator[None]:
    """While open, whatever libraries and child processes write to stdout goes to stderr."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # stdout is closed: nothing can reach it
        yield
        return
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _print_result(result: Any, json_output: bool = False) -> None:
    """Print one result on stdout: a JSON document, or what Rich can draw."""
    if json_output:
        print(json.dumps(_jsonable(result), indent=2, allow_nan=False))
        return
    from rich.console import Console
    from rich.text import Text

    # A pipe has no width of its own: what reads it wants whole values.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    # A line stays a line, for a path or a sentence may be copied; tables know their width.
    Console(width=width).print(result, highlight=False, soft_wrap=isinstance(result, Text))


def _jsonable(value: Any) -> Any:
    """`value` with what JSON has no word for, NaN and infinity, as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_jsonable(inner) for inner in value]
    return value


def _shown(value: Any) -> str:
    """A cell of a table; what a manifest says is not to be read as Rich's markup."""
    from rich.markup import escape

    return "-" if value is None else escape(str(value))


def _range(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _complain(message: str) -> None:
    """One red line on stderr."""
    line = "error: " + " ".join(message.split())
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        line = f"\033[31m{line}\033[0m"
    print(line, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    # Wherever it stands, also behind the command's name.
    given = [argument for argument in given if argument != "--debug"]
    sys.exit(_run(given, debug))


def _run(arguments: list[str], debug: bool) -> int:
    try:
        code = app(args=arguments, prog_name="ranksweep", standalone_mode=False)
    except RanksweepError as error:
        if debug:
            traceback.print_exc()
        _complain(str(error))
        return error.exit_code
    except typer.TyperException as error:
        return _usage_error(error)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        _complain(
            f"ranksweep failed unexpectedly: {type(error).__name__}: {error} "
            "(a defect; --debug shows where)"
        )
        return EXIT_FAILED
    if code == EXIT_INTERRUPTED:
        _complain("interrupted")
    return code if isinstance(code, int) else 0


def _usage_error(error: typer.TyperException) -> int:
    """A wrong option or argument, on one line."""
    message = error.format_message()
    if message:  # empty where a command without arguments has shown its help
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "ranksweep"
        _complain(f"{message.rstrip('.')}; see `{command} --help`")
    return error.exit_code


if __name__ == "__main__":
    main()
