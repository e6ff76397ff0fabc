"""A whole sweep by ranksweep against the script that one writes from Ray's documentation.

Both sides search the movie reviews on MiniLM with the same rows, epochs, batch size, schedule,
number of cores, and stop none early. ranksweep's side is `ranksweep launch` with an
empty store, so its profile is part of it, over all five methods of the demo's space; the other is
`plain_sweep.py`, which starts a `TorchTrainer` for each trial and tunes PEFT's LoRA. The plain side
may run fewer trials (`--plain-trials`). Trials of a side cost alike, so the time of a sweep of
`--of` trials is what a side spends once and so many times the median of each part of a trial; so
are both sides' times for trials 4 and 16 times as long.

    python benchmarks/time_to_quality.py --trials 6 --plain-trials 2 --of 24
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from conditions import MOVIE, demo_sweep, environment
from results import Run

HERE = Path(__file__).resolve().parent
MULTIPLES = {1: "as long as the demo's", 4: "4 times as long", 16: "16 times as long"}


@dataclass(frozen=True)
class Side:
    """Seconds: once a sweep, and by part of a trial (medians); and the best dev accuracy."""

    once: Mapping[str, float]
    trial: Mapping[str, float]
    best: float
    at_once: int

    def total(self, trials: int, longer: int = 1) -> float:
        """Of a sweep of so many trials, whose training and evaluation are so many times as long."""
        grows = ("training", "evaluation")
        each = sum(s * (longer if part in grows else 1) for part, s in self.trial.items())
        return sum(self.once.values()) + trials * each / self.at_once


def sweep_of(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """The demo's sweep without early stopping, on the same cores as the other side."""
    sweep = demo_sweep(name)
    sweep["search"]["trials"] = arguments.trials
    sweep["cluster"] |= {
        "groups": arguments.groups,
        "resources_per_worker": {"CPU": arguments.cpus_per_worker},
    }
    del sweep["store"], sweep["tracking"]
    return sweep


def run_ranksweep(arguments: argparse.Namespace, folder: Path) -> Side:
    """`ranksweep launch` in an empty folder."""
    sweep = sweep_of(arguments, "whole")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "search.cli.main", "launch", "sweep.yaml", "--json"],
        cwd=folder, env=environment(), check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wall = time.monotonic() - started
    result = json.loads(done.stdout)
    if result["states"].get("complete") != arguments.trials:
        raise SystemExit(f"not every trial is complete: {result['states']}")
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/.ranksweep/mlflow.db")
    (sweep_run,) = client.search_runs(
        [e.experiment_id for e in client.search_experiments()],
        "tags.`ranksweep.kind` = 'sweep'",
    )
    runs = client.search_runs(
        [sweep_run.info.experiment_id], "tags.`ranksweep.kind` = 'trial'", max_results=1000
    )
    parts: dict[str, list[float]] = {"training": [], "evaluation": []}
    for run in runs:
        for part, found in parts.items():
            history = client.get_metric_history(run.info.run_id, f"{part}_seconds")
            found.append(sum(point.value for point in history))
    trial = {part: statistics.median(values) for part, values in parts.items()}
    seconds = result["seconds"]
    searched = seconds["search"] * arguments.groups / arguments.trials
    trial["hand-over and logging"] = max(0.0, searched - sum(trial.values()))
    once = {
        "start-up and end": wall - seconds["profile"] - seconds["search"],
        "profile": seconds["profile"],
    }
    return Side(once, trial, result["best"][0]["value"], arguments.groups)


def run_plain(arguments: argparse.Namespace, folder: Path) -> Side:
    """`plain_sweep.py` in an empty folder."""
    sweep = sweep_of(arguments, "plain")
    rows, trials = sweep["task"]["rows"], arguments.plain_trials or arguments.trials
    options = {
        "--trials": trials, "--epochs": sweep["train"]["epochs"],
        "--train-rows": rows["train"], "--dev-rows": rows["dev"],
        "--max-length": sweep["task"]["max_length"], "--groups": arguments.groups,
        "--cpus-per-worker": arguments.cpus_per_worker,
        "--data": MOVIE, "--folder": folder,
    }  # fmt: skip
    given = [text for option, value in options.items() for text in (option, str(value))]
    started = time.monotonic()
    subprocess.run(
        [sys.executable, str(HERE / "plain_sweep.py"), *given], cwd=folder, env=environment(),
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wall = time.monotonic() - started
    summary = json.loads((folder / "plain.json").read_text())
    if len(summary["trials"]) != trials:
        raise SystemExit(f"{summary['failed']} of the plain side's trials failed; see {folder}")
    names = {"began": "processes", "start-up": "imports", "base": "base", "tokens": "tokens"}
    trial = {
        name: statistics.median(each[key] for each in summary["trials"])
        for key, name in names.items()
    }
    trial["imports"] -= trial["processes"]  # both are counted from the trial's start
    for part in ("training", "evaluation"):
        trial[part] = statistics.median(each[part] for each in summary["trials"])
    searched = summary["search"] * arguments.groups / trials
    trial["end and logging"] = max(0.0, searched - sum(trial.values()))
    return Side(
        {"start-up and end": wall - summary["search"]}, trial, summary["best"], arguments.groups
    )


def in_words(side: Side) -> str:
    """What a side spends where."""
    once = ", ".join(f"{part} {seconds:.1f}" for part, seconds in side.once.items())
    trial = ", ".join(f"{part} {seconds:.1f}" for part, seconds in side.trial.items())
    return f"once {once} s; a trial {trial} s; best dev accuracy {side.best:.3f}"


def main() -> None:
    """Run both sides, print the figures and record the row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=24, help="that are run")
    parser.add_argument(
        "--of", type=int, help="trials of the sweep that is told; default: --trials"
    )
    parser.add_argument("--plain-trials", type=int, help="of the plain side; default: as many")
    parser.add_argument("--groups", type=int, default=1, help="trials at a time, on both sides")
    parser.add_argument("--cpus-per-worker", type=int, default=2)
    arguments = parser.parse_args()
    this_run = Run.begin()
    print(this_run, flush=True)
    with tempfile.TemporaryDirectory(prefix="ranksweep-") as folder:
        sides = {}
        for name, run in (("ranksweep", run_ranksweep), ("plain", run_plain)):
            own = Path(folder) / name
            own.mkdir()
            sides[name] = run(arguments, own)
            print(f"{name}: {in_words(sides[name])}", flush=True)
    told = arguments.of or arguments.trials
    totals = {
        longer: {name: side.total(told, longer) for name, side in sides.items()}
        for longer in MULTIPLES
    }
    ratios = {longer: total["plain"] / total["ranksweep"] for longer, total in totals.items()}
    this_run.record(
        f"a sweep of {told} trials of the demo's length, profile included, against the script from "
        "Ray's documentation",
        {
            "sides": {name: asdict(side) for name, side in sides.items()},
            "seconds": {str(longer): total for longer, total in totals.items()},
            "ratio": {str(longer): ratio for longer, ratio in ratios.items()},
        },
        "; against ".join(in_words(side) for side in sides.values()),
        "; ".join(
            f"{MULTIPLES[longer]} {total['ranksweep']:,.0f} s against {total['plain']:,.0f} s, "
            f"**{ratios[longer]:.1f}x**"
            for longer, total in totals.items()
        ),
    )


if __name__ == "__main__":
    main()
