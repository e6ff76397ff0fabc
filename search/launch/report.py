"""The report of a sweep at the end of its launch: in its folder, and as artifacts of its run."""

from __future__ import annotations

import logging
from collections.abc import Callable

from search.launch.result import LaunchResult
from search.paths import SweepPaths, private_files
from search.redaction import redacted_text
from search.tracking.runs import RecordedRuns
from search.tracking.tracker import Tracker
from spaces.errors import one_line

logger = logging.getLogger(__name__)
REPORT = "report"
"""Its folder, in the sweep's own and among the artifacts of the sweep's run."""


def leave_report(
    result: LaunchResult,
    paths: SweepPaths,
    tracker: Tracker,
    store: str,
    say: Callable[[str], object],
    hurried: Callable[[], bool],
) -> None:
    """Write the report of a launch that has complete trials, and note its page in the result.

    Whatever befalls it is said and ends nothing: what was searched is kept. Not for a user who is
    in a hurry, nor where MLflow has not been told all.
    """
    if result.sweep_run_id is None or not result.states.get("complete") or hurried():
        return
    if result.untold:
        say(f"no report yet: MLflow lacks {result.untold} records; --resume tells them")
        return
    try:
        # Here, for what draws takes a while to import, and a launch may end without it.
        from search.reports.write import report_sweep

        recorded = RecordedRuns(tracker.uri, patience=0.0)
        with private_files():
            written = report_sweep(recorded, result.sweep_run_id, paths.report, store=store)
        result.report, result.answer = str(written.page), written.answer.sentences
        if not hurried():
            tracker.impatient().log_folder(result.sweep_run_id, paths.report, REPORT)
    except Exception as error:  # of whatever is drawn with, read from or written to
        logger.debug("the report of %s", result.name, exc_info=True)
        what = "is not in MLflow" if result.report else "could not be written"
        say(f"the report {what}: {redacted_text(one_line(error))}")
