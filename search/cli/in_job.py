"""The command that a submitted sweep is run by, on the cluster."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from search.cli.app import app
from search.cli.output import json_document, plain_text
from search.cli.sweeps import run_launch
from spaces.errors import RanksweepError


@app.command("job", hidden=True)
def run_job(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What has travelled.")],
) -> None:
    """Run the sweep that has travelled in a job's folder, and tell its result to who follows it."""
    from search.launch.submission.arrival import absent, read_job
    from search.launch.submission.following import result_line
    from search.launch.submission.unpacked import unpacked_sweep
    from search.redaction import redacted

    job = read_job(folder)
    config = unpacked_sweep(folder, job)
    _say(f"{config.name} works in {Path.cwd()} on {os.uname().nodename}")
    _say(f"store {redacted(config.store)}, MLflow {redacted(config.tracking.uri)}")
    if lacking := list(absent(job["wanted"], os.environ)):
        _say(
            f"note: {', '.join(lacking)} was set where the sweep was submitted and is not here; "
            "credentials must come from elsewhere, such as a role of this machine"
        )
    result = run_launch(
        config,
        resume=job["resume"],
        scheduled_by=job["scheduled_by"],
        base_name=job["base_name"],
    )
    error = result.error if isinstance(result.error, str) else ""
    print(result_line(json_document(result.document), plain_text(result.drawn), error), flush=True)
    if isinstance(result.error, BaseException):
        raise result.error
    if result.error:
        raise RanksweepError(result.error)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
