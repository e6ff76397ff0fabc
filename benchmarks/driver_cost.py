"""What a trial costs the driver, at the start of a long search and at its end.

Trials of a stub job run through all that a search has on its driver: Ray Tune, the searcher over an
Optuna study in SQLite, the job queue, the recorder with its journal, and MLflow in SQLite, which is
told by a thread of the driver. In place of the resident workers an actor takes the jobs and answers
one epoch and the end at once. The base has the shapes of MiniLM, its statistics are drawn.

Costs are compared between two windows of trials: the main thread's processor time per trial, which
is Tune's loop and all that it waits for, that of the whole process, which has MLflow's thread and
Ray's in it, and the clock.

    python benchmarks/driver_cost.py --trials 2000
"""

from __future__ import annotations

import argparse
import cProfile
import io
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import ray
from conditions import local_ray
from plans import GRID, drawn_profile
from ray import tune
from results import Run
from rich.console import Console

from search.cli.view import View
from search.config.sweep import ClusterSettings, SearchSettings, SweepConfig
from search.launch.recorder import Recorder
from search.paths import SweepPaths
from search.study.proposals import Proposals
from search.study.ranking import WorthKeeping
from search.study.study import open_study, states_of
from search.tracking.journal import Journal
from search.tracking.relay import Relay
from search.tracking.tracker import Tracker
from search.tracking.weights import KeptWeights
from search.tuning.searcher import StudySearcher
from search.tuning.tune import tune_search
from spaces.planner import Planner
from spaces.search_space import SearchSpace
from spaces.target import TargetModule
from trainables.resident.jobs import Done, Epoch, GroupFacts, Started, TrialResult
from trainables.resident.queue import start_job_queue
from trainables.training.settings import TrainSettings

METHODS = ("pilora", "taso", "sensitivity", "joint")  # and LoRA, which is always searched
LEARNING_RATE = {"low": 5.0e-5, "high": 2.0e-3, "log": True}
CHILDREN = {"the queue": "ray::JobQueue", "the light function": "ray::ImplicitFunc"}
GOAL = 1.3  # cost of a trial at the end over that at the start


def minilm() -> tuple[TargetModule, ...]:
    """The 36 target modules of MiniLM."""
    shapes = {
        "attention.self.query": (384, 384),
        "attention.self.key": (384, 384),
        "attention.self.value": (384, 384),
        "attention.output.dense": (384, 384),
        "intermediate.dense": (1536, 384),
        "output.dense": (384, 1536),
    }
    return tuple(
        TargetModule(f"encoder.layer.{layer}.{name}", shape)
        for layer in range(6)
        for name, shape in shapes.items()
    )


class StubGroup:
    """Takes jobs from the queue and answers one epoch and the end at once."""

    def serve(self, queue: Any) -> int:
        """Serve until the queue is closed; returns how many jobs were served."""
        served = 0
        ray.get(queue.register.remote(0, GroupFacts("stub")))
        # The first job takes as long as the processes of both light functions take to start. Tune
        # would give a trial that waits for its process that of a trial that has ended, and start
        # one in vain for every trial whose job is over sooner.
        first = ray.get(queue.take.remote(0, 300.0))
        waiting = [first, ray.get(queue.take.remote(0, 300.0))]
        while True:
            taken = waiting.pop(0) if waiting else ray.get(queue.take.remote(0, 60.0))
            if taken == "closed":
                return served
            if taken is None:
                continue
            job_id, job = taken
            value = 0.9 - 0.02 * math.log(job.learning_rate / 4e-4) ** 2
            metrics = {"accuracy": value, "dev_loss": 1.0 - value, "train_loss": 1.0 - value}
            events = [
                Started(),
                Epoch(1, metrics),
                Done(TrialResult(metrics, head_params=770, ready_at=0.0, first_step_at=0.0)),
            ]
            for event in events:
                ray.get(queue.report.remote(job_id, event))
            served += 1


@dataclass(frozen=True)
class Moment:
    """The driver's clocks when a trial has ended, in seconds."""

    main: float
    process: float
    wall: float


class Clock(tune.Callback):  # type: ignore[misc]
    """Reads the driver's clocks when a trial has ended, and memory at some of the trials."""

    def __init__(self, trials: int, profiles: Path | None) -> None:
        self.moments: list[Moment] = []
        self.memory: dict[int, dict[str, float]] = {}
        self._memory_at = {100, trials // 2, trials}
        self._profiles, self._windows = profiles, windows(trials)
        self._profiler = cProfile.Profile(time.thread_time)

    def on_trial_complete(self, *_arguments: Any, **_info: Any) -> None:
        """Read them."""
        now = Moment(time.thread_time(), time.process_time(), time.perf_counter())
        self.moments.append(now)
        done = len(self.moments)
        if done in self._memory_at:
            self.memory[done] = resident_memory()
        for first, last in self._windows if self._profiles else ():
            if done == first:
                self._profiler.enable()
            elif done == last:
                self._profiler.disable()
                self._profiler.dump_stats(f"{self._profiles}-{last}")
                self._profiler.clear()

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its arguments.
        return {}

    def per_trial(self, first: int, last: int) -> Moment:
        """What one of the trials from `first` to `last` took, on average."""
        a, b, count = self.moments[first - 1], self.moments[last - 1], last - first
        return Moment(
            (b.main - a.main) / count, (b.process - a.process) / count, (b.wall - a.wall) / count
        )


def resident_memory() -> dict[str, float]:
    """MiB of the driver and of the actors that every trial passes through."""
    found = {"the driver": psutil.Process().memory_info().rss / 2**20}
    for process in psutil.process_iter(["cmdline", "memory_info"]):
        title = " ".join(process.info["cmdline"] or ())
        for name, start in CHILDREN.items():
            if title.startswith(start):
                found[name] = process.info["memory_info"].rss / 2**20
    return found


def measure(
    trials: int, folder: Path, clock: Clock, sampler: Literal["tpe", "plan"]
) -> tuple[dict[str, int], float, int]:
    """Run the search; returns its states, how long MLflow was told the rest, and what it holds."""
    targets = minilm()
    profile = drawn_profile(targets)
    written = {"learning_rate": LEARNING_RATE, "methods": list(METHODS)}
    space = SearchSpace.parse(written).fitted(targets, GRID)
    config = SweepConfig.model_construct(
        search=SearchSettings(), train=TrainSettings(epochs=1), cluster=ClusterSettings()
    )
    paths = SweepPaths(folder, "driver-cost")
    paths.make_sweep()
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db", "driver-cost")
    sweep_run_id = tracker.start_sweep("driver-cost", {}, {"task": "stub", "metric": "accuracy"})
    study = open_study(
        paths.study_uri, "driver-cost", objectives=["accuracy"], mode="max", sampler=sampler, seed=0
    )
    planner = Planner(targets, profile)
    allocation = "free" if sampler == "plan" else "equal"
    settings = SearchSettings(trials=trials, sampler=sampler, allocation=allocation)
    searcher = StudySearcher(Proposals(study, space, planner, settings, TrainSettings(epochs=1)))
    view = View("driver-cost", console=Console(file=io.StringIO()))
    journal = Journal(paths.journal)
    relay = Relay(
        journal, tracker, sweep_run_id, on_run=searcher.set_run_id,
        plan_of=planner.plan,
    )  # fmt: skip
    worth = WorthKeeping(study, settings.objective)
    kept = KeptWeights(paths, "best", collect=lambda number: b"weights", best=worth)
    recorder = Recorder(config, lambda: worth.leader, relay, view, searcher, kept)
    with local_ray(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_USAGE_STATS_ENABLED="0"):
        queue = start_job_queue()
        group = ray.remote(StubGroup).options(num_cpus=0).remote()
        serving = group.serve.remote(queue)
        tune_search(
            searcher=searcher, queue=queue, max_concurrent_trials=2, time_budget=None,
            scheduler={"name": "asha", "grace_epochs": 1, "reduction_factor": 3},
            storage_path=paths.tune, name="search", observer=recorder, callbacks=[clock],
            keep_weights=True,
        )  # fmt: skip
        ended = time.monotonic()
        relay.close()
        told = time.monotonic() - ended
        ray.get(queue.close.remote())
        assert ray.get(serving, timeout=30) == trials
    logged = [run.status for run in tracker.children(sweep_run_id)]
    return states_of(study), told, logged.count("complete")


def windows(trials: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The trials at the start and at the end that are compared."""
    width = min(100, trials // 4)
    return (width // 2, width // 2 + width), (trials - width, trials)


def main(arguments: list[str] | None = None) -> None:
    """Measure, then print the figures and record the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=2000, help="trials (default: %(default)s)")
    parser.add_argument(
        "--sampler", choices=("tpe", "plan"), default="tpe", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--profile", type=Path, metavar="FILE",
        help="write cProfile's statistics of the main thread to FILE-N, N the end of each window",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.trials < 100:
        parser.error("--trials must be at least 100")
    trials, run = options.trials, Run.begin()
    clock = Clock(trials, options.profile)
    with tempfile.TemporaryDirectory(prefix="driver-cost-") as folder:
        states, told, logged = measure(trials, Path(folder), clock, options.sampler)
    report(run, trials, clock, states, told, logged, options.sampler)


def report(
    run: Run,
    trials: int,
    clock: Clock,
    states: Mapping[str, int],
    told: float,
    logged: int,
    sampler: str,
) -> None:
    """Print the figures and record the row."""
    named = "" if sampler == "tpe" else f" with the sampler {sampler}"
    early, late = windows(trials)
    first, last = clock.per_trial(*early), clock.per_trial(*late)
    ratio = last.main / first.main
    print(f"{run}; {trials} trials, {dict(states)}")
    print(f"{logged} trials stand complete in MLflow, {told:.1f} s after the last had ended")
    print(
        f"per trial, in ms: trials {early[0]} to {early[1]}, trials {late[0]} to {late[1]}, ratio"
    )
    cost = {
        name: {"first": 1000 * getattr(first, name), "last": 1000 * getattr(last, name)}
        for name in ("main", "process", "wall")
    }
    for name, each in cost.items():
        a, b = each["first"], each["last"]
        print(f"  {name:10} {a:8.1f} {b:8.1f} {b / a:6.2f}")
    steps = range(0, trials, max(100, trials // 10))
    course = [1000 * clock.per_trial(n + 1, min(n + 100, trials)).main for n in steps]
    way = ", ".join(f"{each:.0f}" for each in course)
    print(f"main thread along the way, ms: {way}")
    for done, sizes in sorted(clock.memory.items()):
        print(f"MiB after {done}: " + ", ".join(f"{k} {v:.0f}" for k, v in sizes.items()))
    least, most = (clock.memory[done]["the driver"] for done in (100, trials))
    both = {
        name: f"{each['last']:.1f} against {each['first']:.1f} ms" for name, each in cost.items()
    }
    run.record(
        f"the driver's cost of a trial{named}, {trials:,} against 100",
        {
            "ms": cost,
            "course_ms": course,
            "ratio": ratio,
            "memory_mib": {"first": least, "last": most},
        },
        f"{both['main']} of the main thread, {both['process']} of the process, {both['wall']} by "
        f"the clock; on the way {way} ms",
        f"**{ratio:.2f}** (limit {GOAL}); memory {most:.0f} against {least:.0f} MiB, "
        f"{1024 * (most - least) / max(trials - 100, 1):.0f} KiB a trial",
    )
    if logged != trials:
        sys.exit(f"MLflow holds {logged} of {trials} trials")


if __name__ == "__main__":
    main()
