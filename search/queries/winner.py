"""The trial that a sweep has found to be best."""

from __future__ import annotations

import math
from statistics import fmean

from search.objective import Objective
from search.queries.comparison import newest_sweep
from search.tracking.runs import RecordedRuns
from spaces.errors import RanksweepError


def winner(recorded: RecordedRuns, sweep: str) -> str:
    """The run id of a sweep's best trial; `sweep` is its name, of which the newest counts, or its
    run id.

    Of its confirmed choices it is the best on dev over the seeds, for test is there to judge it;
    where none was confirmed, the best of all trials. One that started from the weights of another
    never counts: its value is of both trainings. Raises RanksweepError where there is no such
    sweep or no trial of it is complete.
    """
    newest = newest_sweep(recorded, sweep)
    runs = recorded.search({"status": "complete"}, [newest.experiment_id], newest.run_id)
    objective = Objective(newest.metric or "accuracy", newest.mode or "max")
    trials = {
        run.number: run
        for run in runs
        if run.kind == "trial" and run.number is not None and run.repeat is None
        if run.warm_from is None
        if math.isfinite(run.metrics.get(objective.metric, math.nan))
    }
    if not trials:
        raise RanksweepError(f"{sweep}: no trial of it has run to its end")
    on_dev: dict[int, list[float]] = {}
    for run in runs:
        value = run.metrics.get(f"dev_{objective.metric}")
        if run.kind == "confirm" and run.number in trials and value is not None:
            on_dev.setdefault(run.number, []).append(value)
    values = {number: fmean(each) for number, each in on_dev.items()}
    if not values:
        values = {number: run.metrics[objective.metric] for number, run in trials.items()}
    best = max(values, key=lambda number: (objective.gain(values[number]), -number))
    return trials[best].run_id
