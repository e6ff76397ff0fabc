"""The command report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli.app import JsonOption, StoreOption, TrackingOption, app
from search.cli.output import Result, prints_result
from search.cli.watch import tracking_of_sweep
from spaces.errors import UsageError

if TYPE_CHECKING:
    from search.reports.write import WrittenReport


@app.command()
@prints_result
def report(
    sweep: Annotated[
        str | None, typer.Argument(metavar="SWEEP", help="A sweep's name or run id.")
    ] = None,
    *,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="T", help="All sweeps of this task, in place of one sweep."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="Write here: a new or empty folder, or an earlier report."
        ),
    ],
    store: StoreOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Write what a sweep has found as one page, with its figures as PNG and their numbers as CSV.

    The page opens from the folder in any browser, with no network.
    """
    if (sweep is None) == (task is None):
        both = "both are given" if sweep is not None else "neither is given"
        raise UsageError(f"SWEEP, --task: {both}; name a sweep, or with --task a task")
    if sweep is not None:
        from search.reports.write import report_sweep
        from search.tracking.runs import RecordedRuns

        recorded = RecordedRuns(tracking_of_sweep(sweep, tracking))
        written = report_sweep(recorded, sweep, out, store=store)
    else:
        assert task is not None
        from search.config.reading import resolve_tracking
        from search.reports.task.report import write_task_report

        written = write_task_report(resolve_tracking(tracking), task, out)
    return Result(written_document(written), drawn_report(written))


def written_document(written: WrittenReport) -> dict[str, object]:
    """What was written, for --json."""
    return {
        "out": str(written.out),
        "page": str(written.page),
        "answer": list(written.answer.sentences),
        "commands": [each.line for each in written.answer.commands],
        "figures": written.figures,
        "absent": written.absent,
        "notes": written.notes,
    }


def drawn_report(written: WrittenReport) -> Iterator[str]:
    """The answer, what is not drawn and why, and where the page is."""
    yield from written.answer.sentences
    yield from (f"not drawn: {each.title} ({each.why})" for each in written.absent)
    yield from (f"note: {note}" for note in written.notes)
    yield f"wrote {written.page}, {len(written.figures)} figures as PNG and CSV beside it"
