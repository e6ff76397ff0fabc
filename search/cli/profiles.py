"""The commands profiles list, show, verify and remove."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from search.cli.app import EXIT_FAILED, JsonOption, StoreOption, TrackingOption, app
from search.cli.output import Result, add_row, prints_result
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
@prints_result
def profiles_list(
    store: StoreOption = None, tracking: TrackingOption = None, json_output: JsonOption = False
) -> Result:
    """List the profiles of the store, who made them, at what cost, and how many runs use them."""
    opened = _store(store)
    manifests = opened.list()
    if not manifests:
        return Result([], [f"no profiles in {opened.name}"])
    uses = _uses_where_known(tracking)
    return Result(profiles_json(manifests, uses), [profiles_table(manifests, uses)])


def _uses_where_known(tracking: str | None) -> Mapping[str, ProfileUse] | None:
    """Key -> its uses; None, said in one line, where tracking cannot be reached."""
    from search.config.reading import resolve_tracking
    from search.queries.profile_uses import profile_uses

    try:
        return profile_uses(resolve_tracking(tracking))
    except TrackingError as error:
        print(f"not known which runs use the profiles: {error}", file=sys.stderr)
        return None


@profiles_app.command("show")
@prints_result
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
) -> Result:
    """Show one profile: what it is of, its rank budget, row importance and dominant rows."""
    import yaml

    from search.cli.profile_view import ProfileView
    from search.reports.profile_figures import profile_report, profile_summary

    loaded, manifest = _profile_and_manifest(reference, store)
    report = profile_report(loaded)
    files = _pictures(report, out) if out is not None else []
    summary = profile_summary(loaded, manifest, report)
    return Result(
        {**summary, "figures": report.as_dict(), "files": files},
        [
            yaml.safe_dump(summary, sort_keys=True).rstrip(),
            ProfileView(report),
            *(f"wrote {file}" for file in files),
        ],
    )


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
    from search.reports.profile_pictures import write_pictures

    return [str(file) for file in write_pictures(report, folder)]


@profiles_app.command("verify")
@prints_result
def profiles_verify(
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="A key, or its first digits; else all.")
    ] = None,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Read profiles back and check every byte; what is damaged goes to quarantine."""
    opened = _store(store)
    checked = opened.verify(opened.resolve(key) if key is not None else None)
    table = Table("key", "verified", Column("detail", overflow="fold"))
    for each in checked:
        mark = Text("yes", style="green") if each.ok else Text("no", style="red")
        add_row(table, each.key[:12], mark, each.detail)
    documents = [{"key": each.key, "ok": each.ok, "detail": each.detail} for each in checked]
    sound = all(each.ok for each in checked)
    return Result(documents, [table], exit_code=0 if sound else EXIT_FAILED)


@profiles_app.command("remove")
@prints_result
def profiles_remove(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key, or its first digits.")],
    force: Annotated[
        bool, typer.Option("--force", help="Remove it whatever uses it; MLflow is not asked.")
    ] = False,
    store: StoreOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Remove one profile from the store, unless runs in MLflow use it."""
    opened = _store(store)
    resolved = opened.resolve(key)
    if not force:
        _refuse_where_used(resolved, tracking)
    removed = opened.remove(resolved)
    return Result(
        {"key": resolved, "removed": removed},
        [f"removed {resolved}"] if removed else [],
        exit_code=0 if removed else EXIT_FAILED,
    )


def _refuse_where_used(key: str, tracking: str | None) -> None:
    """Raise an error unless MLflow is there and says that no run uses the profile."""
    from search.config.reading import resolve_tracking
    from search.queries.profile_uses import profile_uses

    try:
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

    table = Table(
        Column("key", no_wrap=True),
        Column("base", overflow="fold", ratio=3),
        Column("task", overflow="fold", ratio=2),
        Column("size", no_wrap=True, justify="right"),
        Column("age", no_wrap=True, justify="right"),
        Column("by", overflow="fold", ratio=2),
        Column("cost", no_wrap=True, justify="right"),
        Column("runs", justify="right"),
    )
    for manifest in manifests:
        key = str(manifest["key"])
        add_row(
            table,
            key[:12],
            *(printable(manifest.get(name)) for name in ("base", "task")),
            byte_size(manifest.get("size")),
            age(manifest.get("published"), now or datetime.now(UTC)),
            printable(manifest.get("by")),
            seconds_text(manifest.get("seconds")),
            None if uses is None else uses.get(key, ProfileUse()).text,
        )
    return table


def profiles_json(
    manifests: Sequence[Mapping[str, Any]], uses: Mapping[str, ProfileUse] | None
) -> list[dict[str, Any]]:
    """The manifests with `used_by`, which is None where tracking does not tell."""
    from search.queries.profile_uses import ProfileUse

    none = ProfileUse()
    return [
        {**each, "used_by": None if uses is None else asdict(uses.get(str(each["key"]), none))}
        for each in manifests
    ]
