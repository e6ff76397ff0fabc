"""Several launches share one sweep: Optuna's study and MLflow on one PostgreSQL server.

Starts a PostgreSQL server of its own (Debian's package `postgresql`) and a local Ray, launches the
same sweep from several folders at once, and looks into study and MLflow: every trial is to be
there once, complete, and known to both.

    pip install 'ranksweep[postgres]'
    python benchmarks/shared_sweep.py --drivers 4 --trials 16
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from conditions import demo_sweep, environment
from results import Run


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def postgres_folder() -> Path:
    """Where PostgreSQL's programs are."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    program = str(found[-1]) if found else shutil.which("initdb")
    if program is None:
        raise SystemExit("no PostgreSQL here; install Debian's package postgresql")
    return Path(program).parent


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A server in the folder, on loopback; yields host and port of its databases."""
    programs, data, port = postgres_folder(), folder / "postgres", free_port()
    # PostgreSQL does not run as root.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    data.mkdir()
    if user:
        folder.chmod(0o755)
        shutil.chown(data, "postgres")
    start = [*user, str(programs / "initdb"), "-D", str(data), "-U", "ranksweep", "-A", "trust"]
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL)
    server = subprocess.Popen(
        [*user, str(programs / "postgres"), "-D", str(data), "-h", "127.0.0.1",
         "-p", str(port), "-k", str(data)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = f"127.0.0.1:{port}"
        for database in ("study", "mlflow"):
            create(address, database)
        yield address
    finally:
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, 2)  # PostgreSQL's fast shutdown
        server.wait(30)


def create(address: str, database: str) -> None:
    """Create a database, once the server answers."""
    import psycopg

    give_up = time.monotonic() + 30
    while True:
        try:
            with psycopg.connect(
                f"postgresql://ranksweep@{address}/postgres", autocommit=True
            ) as connection:
                connection.execute(f"CREATE DATABASE {database}")
                return
        except psycopg.OperationalError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)


@contextmanager
def ray_head(folder: Path, cpus: int) -> Iterator[str]:
    """One Ray node with so many CPUs by name; yields its address."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    port = free_port()
    head = subprocess.Popen(
        [str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={port}",
         f"--num-cpus={cpus}", "--include-dashboard=false", "--node-ip-address=127.0.0.1",
         "--disable-usage-stats", f"--temp-dir={folder}", "--block"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(),
    )  # fmt: skip
    try:
        give_up = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if time.monotonic() > give_up:
                raise SystemExit("Ray did not start")
            time.sleep(0.5)
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(60)


def sweep_of(arguments: argparse.Namespace, folder: Path, ray: str, server: str) -> dict[str, Any]:
    """The demo's sweep with few rows, on one group for each driver."""
    sweep = demo_sweep("shared")
    sweep["task"] |= {"rows": {"train": 96, "dev": 96, "test": 96}, "max_length": 24}
    sweep["search"] |= {
        "trials": arguments.trials,
        "study": f"postgresql+psycopg://ranksweep@{server}/study",
    }
    sweep["cluster"] = {"address": ray, "resources_per_worker": {"CPU": 1}}
    sweep["store"] = f"file://{folder}/store"
    sweep["tracking"] = {"uri": f"postgresql+psycopg://ranksweep@{server}/mlflow"}
    return sweep


def main() -> None:
    """Launch, wait, count and record the row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drivers", type=int, default=4)
    parser.add_argument("--trials", type=int, default=16)
    arguments = parser.parse_args()
    run = Run.begin()
    print(run, flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="rs-") as name,
        postgres(Path(name)) as server,
        ray_head(Path(name) / "ray", arguments.drivers + 1) as ray,
    ):
        folder = Path(name)
        sweep = yaml.safe_dump(sweep_of(arguments, folder, ray, server))
        started = time.monotonic()
        drivers = []
        for number in range(arguments.drivers):
            own = folder / f"driver{number}"
            own.mkdir()
            (own / "sweep.yaml").write_text(sweep)
            command = [sys.executable, "-m", "search.cli.main", "launch", "sweep.yaml", "--json"]
            with (own / "said").open("w") as said:
                drivers.append(
                    subprocess.Popen(
                        command, cwd=own, env=environment(), stdout=subprocess.PIPE, stderr=said,
                        text=True,
                    )
                )  # fmt: skip
        results = []
        for number, driver in enumerate(drivers):
            out, _ = driver.communicate()
            if driver.returncode != 0:
                raise SystemExit((folder / f"driver{number}" / "said").read_text())
            results.append(json.loads(out))
        seconds = time.monotonic() - started
        report(run, arguments, server, results, seconds)


def report(
    run: Run,
    arguments: argparse.Namespace,
    server: str,
    results: list[dict[str, Any]],
    seconds: float,
) -> None:
    """Compare what study and MLflow hold and record the row."""
    import mlflow
    import optuna

    study = optuna.load_study(
        study_name="shared", storage=f"postgresql+psycopg://ranksweep@{server}/study"
    )
    client = mlflow.MlflowClient(f"postgresql+psycopg://ranksweep@{server}/mlflow")
    runs = client.search_runs(
        [e.experiment_id for e in client.search_experiments()],
        "tags.`ranksweep.kind` = 'trial'",
        max_results=10_000,
    )
    states = Counter(trial.state.name for trial in study.get_trials())
    status = Counter(each.data.tags["ranksweep.status"] for each in runs)
    numbers = Counter(each.data.tags["ranksweep.number"] for each in runs)
    shares = Counter(each.data.tags["mlflow.parentRunId"] for each in runs)
    print(f"study: {dict(states)}; MLflow: {dict(status)}")
    whole = status == {"complete": arguments.trials} and max(numbers.values()) == 1
    done = sorted(shares.values())
    run.record(
        f"launches of one sweep of {arguments.trials} trials, {arguments.drivers} at once, "
        "PostgreSQL",
        {"seconds": seconds, "trials_by_launch": done},
        f"{seconds:.0f} s; trials by launch {', '.join(map(str, done))}",
        "**every trial once, in both books**" if whole else "**NOT whole**",
    )
    if not whole or states["RUNNING"] or len(results) != arguments.drivers:
        raise SystemExit("not every trial is there once")


if __name__ == "__main__":
    main()
