"""What queries over ten thousand trials take, in SQLite and in PostgreSQL, beside reading them all.

The trials are written straight into MLflow's tables (many_sweeps.py), then each query is asked for
in this process, in turn with the whole reading, and their answers are compared. The time is the
query's own: the process and its imports are there already.

PostgreSQL (Debian's package `postgresql`) is started in a folder of its own and stopped at the end.

    python benchmarks/queries.py
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from many_sweeps import ManySweeps
from results import Run, measured, spread
from shared_sweep import create, postgres

GOAL_S = 1.0


def timed(work: Callable[[], Any], repeat: int) -> tuple[list[float], Any]:
    """Seconds of each time, and the last answer."""
    taken, answer = [], None
    for _ in range(repeat):
        started = time.perf_counter()
        answer = work()
        taken.append(time.perf_counter() - started)
    return taken, answer


def queries(uri: str) -> dict[str, tuple[Callable[[], Any], Callable[[], Any] | None]]:
    """Name -> the query, and the same by reading all trials where its answer is to be compared."""
    from search.queries.best import best
    from search.queries.comparison import compare
    from search.queries.filters import Filters
    from search.queries.history import history
    from search.queries.sweeps import sweeps

    few = Filters(method="pilora", max_params=8000, max_step_time=0.2)
    nowhere = Path("/nowhere/.ranksweep")

    def of_best(**asked: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
        # A metric that is named is ranked by reading every trial.
        return lambda: best(uri, "task0", **asked), lambda: best(
            uri, "task0", metric="score", **asked
        )

    return {
        "best --top 5": of_best(top=5),
        "best, filtered": of_best(top=5, where=few),
        "best --pareto": of_best(pareto=True),
        "history": (lambda: history(uri, "task0"), None),
        "history --method": (lambda: history(uri, "task0", where=Filters(method="taso")), None),
        "sweeps list": (lambda: sweeps(uri, nowhere), None),
        "best of x' OR 1=1 --": (lambda: best(uri, "x' OR 1=1 --"), None),
        "compare": (lambda: compare(uri, "sweep-1").rows, None),
    }


def whole_reading(uri: str) -> int:
    """Read all complete trials and confirmations, as a query without bounds has to."""
    from search.tracking.runs import RecordedRuns

    every = RecordedRuns(uri)
    names = every.experiments()
    kinds = ("sweep", "trial", "confirm")
    return sum(len(every.search({"kind": kind, "task": "task0"}, names)) for kind in kinds)


def main() -> None:
    """Write the sweeps, ask, compare, and print the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweeps", type=int, default=50)
    parser.add_argument("--trials", type=int, default=200, help="of each sweep")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--databases", nargs="*", default=["sqlite", "postgres"])
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    run = Run.begin()
    with tempfile.TemporaryDirectory(prefix="ranksweep-queries-") as name:
        folder = Path(name)
        if "sqlite" in options.databases:
            ask(run, "SQLite", f"sqlite:///{folder}/mlflow.db", options)
        if "postgres" in options.databases:
            folder.chmod(0o711)  # the server runs as another user
            with postgres(folder) as server:
                create(server, "many")
                uri = f"postgresql+psycopg://ranksweep@{server}/many"
                ask(run, "PostgreSQL", uri, options)


def ask(run: Run, name: str, uri: str, options: argparse.Namespace) -> None:
    """Write the sweeps into one database and ask each query."""
    started = time.perf_counter()
    runs = ManySweeps(sweeps=options.sweeps, trials=options.trials).write(uri)
    print(f"{name}: wrote {runs:,} runs in {time.perf_counter() - started:.0f} s", flush=True)
    whole, read = timed(lambda: whole_reading(uri), 1)
    figures: dict[str, Any] = {"whole reading": measured(whole), "runs": runs}
    told = [f"reading all {read:,} runs {spread(whole)} s"]
    slowest = 0.0
    for each, (query, by_reading) in queries(uri).items():
        taken, answer = timed(query, options.repeat)
        if by_reading is not None and answer != by_reading():
            raise SystemExit(f"{name}, {each}: the answer is not that of reading all trials")
        figures[each] = measured(taken)
        told.append(f"{each} {spread(taken)}")
        slowest = max(slowest, statistics.median(taken))
        print(f"{name}: {each}: {spread(taken)} s", flush=True)
    trials = options.sweeps * options.trials
    run.record(
        f"queries over {trials:,} trials in {options.sweeps} sweeps, {name}",
        figures,
        "; ".join(told) + " s",
        f"**{slowest:.2f} s** the slowest (goal {GOAL_S:.0f} s)",
    )


if __name__ == "__main__":
    main()
