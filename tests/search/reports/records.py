"""Sweeps as a report has them, made in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from search.objective import Objective
from search.queries.comparison import Comparison, OnTest, summarize
from search.queries.sweep_record import CurvePoint, Spent, SweepRecord
from search.queries.sweep_state import best_of_arms
from search.tracking.facts import RunFacts

OBJECTIVE = Objective("accuracy", "max")
BEGAN = 1_700_000_000_000
CONFIG: Mapping[str, Any] = {
    "name": "movie",
    "cluster": {"groups": 2, "workers_per_group": 2, "resources_per_worker": {"CPU": 1, "GPU": 1}},
    "store": "file:///nowhere",
}


def sweep_run(**own: Any) -> RunFacts:
    """The run of a sweep that is complete."""
    facts: dict[str, Any] = {
        "run_id": "5" * 32,
        "experiment_id": "1",
        "parent": None,
        "is_open": False,
        "started_ms": BEGAN,
        "ended_ms": BEGAN + 1_000_000,
        "metrics": {"seconds.prepare": 10.0, "seconds.search": 300.0, "seconds.confirm": 100.0},
        "kind": "sweep",
        "status": "complete",
        "sweep": "movie",
        "task": "sentiment",
        "base": "b" * 64,
        "base_uri": "package:base/model",
        "metric": "accuracy",
        "mode": "max",
        "profile_key": "a" * 64,
    }
    return RunFacts(**{**facts, **own})


def trial(
    number: int,
    arm: str,
    value: float | None,
    params: int = 1000,
    status: str | None = "complete",
    *,
    minutes: tuple[float, float] | None = None,
    **own: Any,
) -> RunFacts:
    """A trial with one choice of its own; `minutes` are its start and end after the sweep's."""
    start, end = minutes or (number, number + 1)
    method = arm.partition(" ")[0]
    choice = {"method": method, "rank": number + 1, "learning_rate": 1e-3 * (1 + number % 7)}
    facts: dict[str, Any] = {
        "run_id": f"{number:032x}",
        "experiment_id": "1",
        "parent": "5" * 32,
        "is_open": status == "running",
        "started_ms": BEGAN + int(60_000 * start),
        "ended_ms": None if status == "running" else BEGAN + int(60_000 * end),
        "metrics": {"trainable_params": float(params)}
        | ({} if value is None else {"accuracy": value}),
        "kind": "trial",
        "status": status,
        "sweep": "movie",
        "method": method,
        "arm": arm,
        "number": number,
        "choice": choice,
    }
    return RunFacts(**{**facts, **own})


def record(
    trials: Sequence[RunFacts],
    confirmed: Mapping[int, Sequence[float]] | None = None,
    *,
    on_dev: float | None = None,
    objective: Objective = OBJECTIVE,
    run: RunFacts | None = None,
    **own: Any,
) -> SweepRecord:
    """A sweep of these trials; `confirmed` has the values on test by number of a trial."""
    by_number = {each.number: each for each in trials}
    dev = {} if on_dev is None else {"dev_accuracy": on_dev}
    confirmations = [
        replace(
            by_number[number],
            run_id=f"c{number:015x}{seed:016x}",
            kind="confirm",
            seed=seed,
            started_ms=BEGAN + 600_000,
            ended_ms=BEGAN + 660_000,
            metrics={"trainable_params": by_number[number].metrics["trainable_params"],
                     "test_accuracy": value, **dev},
        )
        for number, values in (confirmed or {}).items()
        for seed, value in enumerate(values, start=1)
    ]  # fmt: skip
    found = [
        (
            {
                "method": by_number[number].method,
                "arm": by_number[number].arm,
                "number": number,
                "choice": by_number[number].choice,
                "trainable_params": int(by_number[number].metrics["trainable_params"]),
            },
            {seed: OnTest(value, on_dev=on_dev) for seed, value in enumerate(values, start=1)},
        )
        for number, values in (confirmed or {}).items()
    ]
    comparison = Comparison(summarize(found, objective), [], None, {}, None) if confirmed else None
    return SweepRecord(
        run=run or sweep_run(),
        objective=objective,
        config=CONFIG,
        told={"rows": {"train": 640}},
        trials=tuple(trials),
        confirmations=tuple(confirmations),
        best=tuple(best_of_arms(trials, objective)),
        comparison=comparison,
        curves={
            each.run_id: (
                CurvePoint(1.0, each.metrics["accuracy"] - 0.01, each.started_ms + 1),
                CurvePoint(2.0, each.metrics["accuracy"], each.started_ms + 2),
            )
            for each in trials
            if "accuracy" in each.metrics
        },
        profile=None,
        base=None,
        spent={each.run_id: Spent(40.0, 5.0) for each in trials if each.ended_ms},
        **own,
    )


def long_record(trials: int, seed: int = 0) -> SweepRecord:
    """A sweep of many trials of five methods, most of them complete."""
    import random

    draw = random.Random(seed)
    arms = ("lora", "pilora", "taso", "sensitivity", "joint")
    every = []
    for number in range(trials):
        arm = arms[number % len(arms)]
        own = {
            "method": arm, "learning_rate": 10 ** draw.uniform(-4, -2), "alpha": 16.0,
            **({"rank": draw.choice([1, 2, 4, 8])} if arm != "sensitivity" else {"mean_rank": 2}),
            **({"partition": {"rule": draw.choice(["hits", "top"]), "threshold": draw.random()}}
               if arm in ("pilora", "joint") else {}),
        }  # fmt: skip
        every.append(
            trial(
                number, arm, draw.gauss(0.8, 0.03), draw.randint(10_000, 400_000),
                draw.choice(["complete", "complete", "pruned"]), choice=own,
            )
        )  # fmt: skip
    return record(every)
