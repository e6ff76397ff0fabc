"""The trial that a sweep has found to be best."""

from __future__ import annotations

from search.objective import Objective
from search.queries.comparison import newest_sweep
from search.queries.rows import on_dev, rows_of
from search.tracking.runs import RecordedRuns
from spaces.errors import RanksweepError


def winner(recorded: RecordedRuns, sweep: str) -> str:
    """The run id of a sweep's best trial; `sweep` is its name, of which the newest counts, or its
    run id.

    Of its confirmed choices it is the best by what it holds on dev over all its seeds, for test is
    there to judge it; where none was confirmed, the best of all trials. One that started from the
    weights of another never counts: its value is of both trainings. Raises RanksweepError where
    there is no such sweep or no trial of it is complete.
    """
    newest = newest_sweep(recorded, sweep)
    runs = recorded.search({"status": "complete"}, [newest.experiment_id], newest.run_id)
    objective = Objective(newest.metric or "accuracy", newest.mode or "max")
    trials = [run for run in runs if run.kind == "trial" and run.warm_from is None]
    confirmed = [run for run in runs if run.kind == "confirm"]
    rows = [
        row
        for _, row in rows_of(
            [("", run) for run in trials], objective.metric, objective.mode, confirmed
        )
    ]
    if not rows:
        raise RanksweepError(f"{sweep}: no trial of it has run to its end")
    numbers = {run.run_id: run.number or 0 for run in trials}
    measured = {run.number for run in confirmed if on_dev(run, objective.metric) is not None}
    chosen = [row for row in rows if numbers[row.run_id] in measured] or rows
    return min(chosen, key=lambda row: (row.rank, numbers[row.run_id])).run_id
