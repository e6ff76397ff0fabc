"""The commands profiles list, show, verify and remove."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from search.cli.app import EXIT_FAILED, JsonOption, StoreOption, TrackingOption, app
from search.cli.output import cell, logs_on_stderr, print_result
from search.wording import age, byte_size, printable, seconds_text
from spaces.errors import ConfigError, RanksweepError, StoreError, TrackingError

if TYPE_CHECKING:
    from search.queries.profile_uses import ProfileUse
    from search.reports.profile_figures import ProfileReport
    from search.store.profiles import ProfileStore
    from spaces.profile import Profile


profiles_app = typer.Typer(help="What the store of profiles holds.", no_args_is_help=True)
app.add_typer(profiles_app, name="profiles")


@profiles_app.command("list")
def profiles_list(
    store: StoreOption = None, tracking: TrackingOption = None, json_output: JsonOption = False
) -> None:
    """List the profiles of the store, who made them, at what cost, and how many runs use them."""

    opened = _store(store)
    manifests = opened.list()
    uses = _uses_where_known(tracking) if manifests else {}
    if json_output:
        print_result(profiles_json(manifests, uses), json_output)
    else:
        print_result(
            profiles_table(manifests, uses) if manifests else f"no profiles in {opened.name}"
        )


def _uses_where_known(tracking: str | None) -> Mapping[str, ProfileUse] | None:
    """Key -> its uses; None, said in one line, where tracking cannot be reached."""
    from search.config.reading import resolve_tracking

    try:
        with logs_on_stderr():
            from search.queries.profile_uses import profile_uses

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

    from search.reports.profile_figures import profile_report, profile_summary
    from search.reports.profile_terminal import TerminalFigures

    loaded, manifest = _profile_and_manifest(reference, store)
    report = profile_report(loaded)
    files = _pictures(report, out) if out is not None else []
    summary = profile_summary(loaded, manifest, report)
    if json_output:
        figures = {"figures": report.as_dict(), "files": files}
        print_result({**summary, **figures}, json_output)
        return
    print_result(Text(yaml.safe_dump(summary, sort_keys=True).rstrip()))
    print_result(TerminalFigures(report))
    for file in files:
        print_result(Text(f"wrote {file}"))


def _profile_and_manifest(
    reference: str, store: str | None
) -> tuple[Profile, Mapping[str, Any] | None]:
    """A profile of the store and its manifest, or a profile's file, which has none."""
    if Path(reference).suffix == ".safetensors":
        return profile_of(reference, store), None
    opened = _store(store)
    key = opened.resolve(reference)
    manifest = opened.manifest(key)
    if manifest is None:
        raise RanksweepError(
            f"profile: the manifest of {key} cannot be read; run `ranksweep profiles verify {key}`"
        )
    return profile_of(key, store), manifest


def _pictures(report: ProfileReport, folder: Path) -> list[str]:
    with logs_on_stderr():
        from search.reports.profile_pictures import write_pictures

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
        print_result(documents, json_output)
    else:
        table = Table("key", "verified")
        table.add_column("detail", overflow="fold")
        for each in checked:
            mark = "[green]yes[/]" if each.ok else "[red]no[/]"
            table.add_row(each.key[:12], mark, cell(each.detail))
        print_result(table)
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
        print_result({"key": resolved, "removed": removed}, json_output)
    elif removed:
        print_result(Text(f"removed {resolved}"))
    if not removed:
        raise typer.Exit(EXIT_FAILED)


def _refuse_where_used(key: str, tracking: str | None) -> None:
    """Raise an error unless MLflow is there and says that no run uses the profile."""
    from search.config.reading import resolve_tracking

    try:
        with logs_on_stderr():
            from search.queries.profile_uses import profile_uses

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
    from search.config.reading import resolve_store
    from search.store.profiles import ProfileStore

    return ProfileStore(resolve_store(option))


def profile_of(reference: str, store: str | None) -> Profile:
    from search.store.profiles import load_profile

    if Path(reference).suffix == ".safetensors" and not Path(reference).is_file():
        raise ConfigError(f"--profile: {reference} is no file; give a profile's file or its key")
    return load_profile(reference, _store(store))


def profiles_table(
    manifests: Sequence[Mapping[str, Any]],
    uses: Mapping[str, ProfileUse] | None,
    now: datetime | None = None,
) -> Table:
    """The manifests of a store as a table; `uses` by key, None where tracking does not tell."""
    from search.queries.profile_uses import ProfileUse

    table = Table()
    table.add_column("key", no_wrap=True)
    table.add_column("base", overflow="fold", ratio=3)
    table.add_column("task", overflow="fold", ratio=2)
    for name in ("size", "age"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("by", overflow="fold", ratio=2)
    table.add_column("cost", no_wrap=True, justify="right")
    table.add_column("runs", justify="right")
    for manifest in manifests:
        use = None if uses is None else uses.get(str(manifest["key"]), ProfileUse())
        cells = (
            str(manifest["key"])[:12],
            *(printable(manifest.get(name)) for name in ("base", "task")),
            byte_size(manifest.get("size")),
            age(manifest.get("published"), now or datetime.now(UTC)),
            printable(manifest.get("by")),
            seconds_text(manifest.get("seconds")),
            "-" if use is None else use.text,
        )
        # Text, for what a manifest says is not to be read as Rich's markup.
        table.add_row(*(Text(cell) for cell in cells))
    return table


def profiles_json(
    manifests: Sequence[Mapping[str, Any]], uses: Mapping[str, ProfileUse] | None
) -> list[dict[str, Any]]:
    """The manifests with `used_by`, which is None where tracking does not tell."""
    from search.queries.profile_uses import ProfileUse

    return [
        {
            **manifest,
            "used_by": None
            if uses is None
            else uses.get(str(manifest["key"]), ProfileUse()).as_dict(),
        }
        for manifest in manifests
    ]
