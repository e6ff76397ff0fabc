"""The command predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.cli.app import JsonOption, TrackingOption, app
from search.cli.output import Result, prints_result
from search.cli.results import AsSearchedOption, ItsBaseOption, OwnCodeOption


@app.command()
@prints_result
def predict(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A trial, as `best` shows it.")],
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Rows in CSV, TSV, JSON, JSON lines or Parquet."),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write here; default: FILE's .predicted file."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", help="Rows that are in memory at a time.")
    ] = 1024,
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="P", help="Put this before the new columns' names.")
    ] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file that is written to.")
    ] = False,
    base: ItsBaseOption = None,
    as_searched: AsSearchedOption = False,
    own_code: OwnCodeOption = False,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Write what a trained trial predicts beside the rows of a file."""
    from search.config.reading import resolve_tracking
    from search.trained.predict import asked_trial, predict_file

    asked = asked_trial(
        resolve_tracking(tracking),
        run_id,
        base_uri=base,
        as_searched=as_searched,
        own_code=own_code,
    )
    told = predict_file(asked, file, out, at_once=batch_size, prefix=prefix, overwrite=overwrite)
    lines = [f"{told.rows:,} rows in {told.out}, with {', '.join(told.columns)}"]
    if told.confirms:
        lines.append(
            f"by {told.run_id}, the best on dev of the seeds that confirm this trial; "
            "--as-searched takes the trial itself"
        )
    return Result(told, lines)
