"""The commands presets list, show and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from search.cli.app import JsonOption, app
from search.cli.output import Result, add_row, prints_result, write_out
from spaces.errors import UsageError

if TYPE_CHECKING:
    from search.presets.preset import Preset

presets_app = typer.Typer(help="The papers' experiments as sweeps.", no_args_is_help=True)
app.add_typer(presets_app, name="presets")

PresetName = Annotated[
    str, typer.Argument(metavar="NAME", help="A preset, as `presets list` names it.")
]


@dataclass(frozen=True)
class PresetRow:
    """A preset in a list; `figures` are as printed, in `unit`, and `kind` is the task's."""

    name: str
    paper: str
    table: int
    task: str
    kind: str
    base: str
    metric: str
    unit: str
    figures: dict[str, float]


@presets_app.command("list")
@prints_result
def presets_list(
    paper: Annotated[
        str | None, typer.Option("--paper", metavar="P", help="pilora, taso or sensitivity.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", metavar="T", help="Only of this task, such as rte.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="B", help="Part of the base's name.")
    ] = None,
    json_output: JsonOption = False,
) -> Result:
    """List the experiments of the papers' tables, with the figures that are printed there."""
    from search.presets.preset import presets

    every = presets()
    _check_known("--paper", paper, [each.paper_key for each in every])
    _check_known("--task", task, [each.task for each in every])
    if not any(_is_on(each, base) for each in every):
        _check_known("--base", base, [each.base_key for each in every])
    rows = [
        _row(each)
        for each in every
        if paper in (None, each.paper_key) and task in (None, each.task) and _is_on(each, base)
    ]
    error = "" if rows else "no preset is of that; `ranksweep presets list` shows them all"
    return Result(rows, [presets_table(rows)] if rows else [], error)


def _check_known(option: str, given: str | None, known: Sequence[str]) -> None:
    from search.presets.preset import meant

    if given is not None and given not in known:
        remedy = meant(given, dict.fromkeys(known))
        raise UsageError(f"{option}: no preset is of {given[:80]!r}; {remedy}")


def _is_on(preset: Preset, base: str | None) -> bool:
    """Whether a preset's base has this as a part of its name."""
    return (base or "").lower() in f"{preset.base_uri.lower()} {preset.base_key}"


@presets_app.command("show")
@prints_result
def presets_show(name: PresetName, json_output: JsonOption = False) -> Result:
    """Show the sweep of a preset, with what its paper gives and what was chosen."""
    from search.presets.preset import preset
    from search.presets.text import sweep_file

    found = preset(name)
    return Result(found.document(), [sweep_file(found).rstrip("\n")])


@presets_app.command("write")
@prints_result
def presets_write(
    name: PresetName,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write here; default: NAME.yaml."),
    ] = None,
    json_output: JsonOption = False,
) -> Result:
    """Write the sweep of a preset as a file that `launch` takes."""
    from search.presets.preset import preset
    from search.presets.text import sweep_file

    found = preset(name)
    file = Path(f"{found.name}.yaml") if out is None else out
    if file.exists():
        raise UsageError(f"--out: {file} is there already; name another file, or remove it")
    write_out(file, sweep_file(found, str(file)).encode())
    document = {"name": found.name, "out": str(file)}
    return Result(document, [f"wrote {file}", f"  ranksweep launch {file}"])


# -- drawing ---------------------------------------------------------------------------------------


def _row(preset: Preset) -> PresetRow:
    return PresetRow(
        name=preset.name,
        paper=preset.paper.name,
        table=preset.table.table,
        task=preset.task,
        kind=preset.kind,
        base=preset.base_uri,
        metric=preset.metric,
        unit="percent",
        figures=preset.figures,
    )


def presets_table(rows: Sequence[PresetRow]) -> Table:
    """The presets as a table; names, which are copied, are never broken."""
    table = Table()
    table.add_column("name", no_wrap=True)
    for name in ("paper", "table", "task", "base"):
        table.add_column(name, overflow="fold")
    table.add_column("published (percent)", overflow="fold")
    for row in rows:
        figures = ", ".join(f"{name} {figure:g}" for name, figure in row.figures.items())
        told = (row.paper, row.table, row.task, row.base.removeprefix("hub:"))
        add_row(table, row.name, *told, f"{row.metric}: {figures}")
        table.add_section()
    return table
