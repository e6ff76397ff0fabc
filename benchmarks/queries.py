"""What queries over ten thousand trials take, in SQLite and in PostgreSQL, beside reading them all.

The trials are written straight into MLflow's tables (many_sweeps.py), then each query is asked for
in this process, in turn with the whole reading, and their answers are compared. The time is the
query's own: the process and its imports are there already.

PostgreSQL is started in a folder of its own on a Unix socket and stopped at the end; without
`initdb` and `postgres` (--postgres names their folder) it is left out.

    python benchmarks/queries.py
"""

from __future__ import annotations

import argparse
import logging
import os
import pwd
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from many_sweeps import ManySweeps
from results import Run, measured, spread

GOAL_S = 1.0
SERVER_USER = "postgres"
"""Whom the server runs as where this process is root, which PostgreSQL refuses."""


@contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """A server of its own; gives the URI of an empty database."""
    with tempfile.TemporaryDirectory(prefix="ranksweep-queries-") as name:
        folder = Path(name)
        as_user: dict[str, Any] = {}
        user = pwd.getpwuid(os.getuid()).pw_name
        if os.getuid() == 0:
            user = SERVER_USER
            as_user = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
            shutil.chown(folder, user)
        data = folder / "data"
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "cwd": folder, **as_user}
        subprocess.run(
            [programs / "initdb", "-D", data, "-A", "trust", "-U", user, "-E", "UTF8"],
            check=True, **quiet,
        )  # fmt: skip
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses="],
            stderr=subprocess.DEVNULL, **quiet,
        )  # fmt: skip
        try:
            for _ in range(240):
                ready = [programs / "pg_isready", "-h", folder, "-q"]
                if subprocess.run(ready, check=False).returncode == 0:
                    break
                time.sleep(0.25)
            subprocess.run(
                [programs / "createdb", "-h", folder, "-U", user, "many"], check=True, **quiet
            )
            yield f"postgresql+psycopg://{user}@/many?host={folder}"
        finally:
            server.terminate()
            server.wait(timeout=30)


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sweeps", type=int, default=50)
    parser.add_argument("--trials", type=int, default=200, help="of each sweep")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--databases", nargs="*", default=["sqlite", "postgres"])
    parser.add_argument("--postgres", type=Path, default=Path("/usr/lib/postgresql/15/bin"))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    run = Run.begin()
    for database in options.databases:
        if database == "sqlite":
            with tempfile.TemporaryDirectory(prefix="ranksweep-queries-") as folder:
                ask(run, "SQLite", f"sqlite:///{folder}/mlflow.db", options)
        elif (options.postgres / "initdb").exists():
            with postgres(options.postgres) as uri:
                ask(run, "PostgreSQL", uri, options)
        else:
            print(f"no {options.postgres}/initdb: PostgreSQL is left out", file=sys.stderr)


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
    run.record(
        f"queries over {options.sweeps * options.trials:,} trials in {options.sweeps} sweeps, {name}",
        figures,
        "; ".join(told) + " s",
        f"**{slowest:.2f} s** the slowest (goal {GOAL_S:.0f} s)",
    )


if __name__ == "__main__":
    main()
