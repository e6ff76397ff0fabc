"""The command rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.cli.app import JsonOption, Overrides, SweepFile, app
from search.cli.output import Result, prints_result
from search.wording import classes_line


@app.command("rows")
@prints_result
def write_rows(
    sweep: SweepFile,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Write train.jsonl and so on here.")
    ],
    overrides: Overrides = None,
    json_output: JsonOption = False,
) -> Result:
    """Write the exact rows of each split, as the sweep uses them."""
    from search.config.reading import load_sweep
    from search.launch import rows as sweep_rows
    from trainables.tasks.rows import load_rows

    task = load_sweep(sweep, overrides or ()).task
    rows = load_rows(task)
    every = rows.every_split
    files = sweep_rows.write_rows(rows, task, out)
    counts = rows.class_counts()
    document = {
        "task": task.name,
        "files": {split: str(path) for split, path in files.items()},
        "rows": {split: len(part) for split, part in every.items()},
        "classes": counts,
        "notes": list(rows.notes),
    }
    lines = [f"{len(every[split]):,} rows in {path}" for split, path in files.items()]
    return Result(
        document,
        [
            *lines,
            *([f"classes: {classes_line(counts)}"] if counts else ()),
            *(f"note: {note}" for note in rows.notes),
        ],
    )
