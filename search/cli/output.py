"""How results reach stdout, as tables or as JSON; logs go to stderr."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import typer
from rich.text import Text

from spaces.errors import ConfigError, RanksweepError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

PIPE_WIDTH = 160
P = ParamSpec("P")


@dataclass(frozen=True)
class Result:
    """What a command prints on stdout and how it ends.

    With --json `document` is printed, a dataclass as its fields, with --csv a line of each of
    `lines`, which are those of the document where they are not given; else each of `drawn`, a
    string as it stands and the rest as Rich draws it. `error` is told afterwards, on stderr; what
    cut the command off is raised again.
    """

    document: Any
    drawn: Iterable[RenderableType] = ()
    error: str | BaseException = ""
    exit_code: int = 0
    lines: Sequence[Any] | None = None


def prints_result(command: Callable[P, Result]) -> Callable[P, None]:
    """Print what `command` returns, as JSON where its `json_output` is set, as CSV where its
    `csv_output` is.

    While it works, whatever libraries and child processes write to stdout goes to stderr. Raises
    BrokenPipeError, without an errno, where nobody reads stdout any more: Typer ends the process
    at one that has it.
    """

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        as_csv = bool(kwargs.get("csv_output"))
        if as_csv and kwargs["json_output"]:
            raise ConfigError("--csv: does not go with --json; leave one out")
        try:
            with _logs_on_stderr():
                result = command(*args, **kwargs)
        except BrokenPipeError as error:  # of a socket or a child, for nothing is printed yet
            raise RanksweepError(
                "a connection was closed by its other side; check that what it leads to runs, and "
                "try again"
            ) from error
        if kwargs["json_output"] or as_csv:
            if as_csv:
                text = csv_text(result.document if result.lines is None else result.lines)
            else:
                text = json.dumps(json_document(result.document), indent=2, allow_nan=False) + "\n"
            try:
                print(text, end="")
            except BrokenPipeError:
                raise BrokenPipeError from None
        else:
            _draw(result.drawn)
        if isinstance(result.error, BaseException):
            raise result.error
        if result.error:
            raise RanksweepError(result.error)
        if result.exit_code:
            raise typer.Exit(result.exit_code)

    return run


@contextmanager
def _logs_on_stderr() -> Iterator[None]:
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


def _draw(drawn: Iterable[RenderableType]) -> None:
    from rich.console import Console

    class OnStdout(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # for `main`, as where JSON is printed

    # A pipe has no width of its own: what reads it wants whole values.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    _draw_on(OnStdout(width=width, highlight=False), drawn)


def plain_text(drawn: Iterable[RenderableType]) -> str:
    """What a command prints, for a file."""
    from rich.console import Console

    # A notebook too: else Rich shows there what it is to write.
    console = Console(
        file=io.StringIO(), width=PIPE_WIDTH, highlight=False, force_jupyter=False,
        force_terminal=False, color_system=None,
    )  # fmt: skip
    _draw_on(console, drawn)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def _draw_on(console: Console, drawn: Iterable[RenderableType]) -> None:
    for each in drawn:
        if isinstance(each, str):
            # A line stays a line, for a path or a sentence may be copied; tables know their width.
            console.print(Text(each), soft_wrap=True)
        else:
            console.print(each)


def json_document(value: Any) -> Any:
    """Dataclasses as mappings; NaN and infinity, for which JSON has no word, as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value):
        return {field.name: json_document(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_document(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [json_document(inner) for inner in value]
    return value


def csv_text(rows: Iterable[Any]) -> str:
    """Rows as CSV under one head: what is nested in dotted columns, a list as JSON, and null, or
    what a row does not have, as nothing."""
    from search.tracking.facts import flattened

    flat = [flattened(json_document(row)) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if columns:
        writer.writerow(columns)
    for row in flat:
        writer.writerow([_cell(row.get(key)) for key in columns])
    return out.getvalue()


def _cell(value: Any) -> Any:
    if value is None or value == {}:
        return ""
    if isinstance(value, bool | list):
        return json.dumps(value)
    return value


@dataclass(frozen=True)
class ByWidth:
    """One of two renderings, by whether there are `at` columns at least."""

    wide: RenderableType
    narrow: RenderableType
    at: int

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        yield self.wide if options.max_width >= self.at else self.narrow


def add_row(table: Table, *cells: object) -> None:
    """Add a row, None as "-"; what a run or a manifest says is not to be read as Rich's markup."""
    shown = ("-" if cell is None else cell for cell in cells)
    table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in shown))


def count_range_text(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def share_text(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def write_out(out: Path, data: bytes) -> None:
    try:
        out.write_bytes(data)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"--out: {out} cannot be written ({reason}); name another") from None
