"""How results reach stdout, as tables or as JSON; logs go to stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spaces.errors import ConfigError

PIPE_WIDTH = 160


def write_out(out: Path, data: bytes) -> None:
    try:
        out.write_bytes(data)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"--out: {out} cannot be written ({reason}); name another") from None


@contextmanager
def logs_on_stderr() -> Iterator[None]:
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


def print_result(result: Any, json_output: bool = False) -> None:
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


def cell(value: Any) -> str:
    """A cell of a table; what a manifest says is not to be read as Rich's markup."""
    from rich.markup import escape

    return "-" if value is None else escape(str(value))


def count_range_text(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def share_text(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
