"""Queries that read few trials answer what reading all of them does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.many_sweeps import ManySweeps
from search.queries.best import best
from search.queries.filters import Filters
from search.queries.leaders import Leaders
from search.queries.rows import BestRow, front_of, recorded
from search.queries.sweep_summary import summary_of, told_by
from search.tracking.facts import RunFacts
from search.tracking.runs import RecordedRuns

WORLDS: list[dict[str, Any]] = [
    {},
    {"summaries": "some", "digits": 2, "repeats": 0.2},
    {"mode": "min", "noise": 0.05, "repeats": 0.1},
    {"summaries": "none", "spread": 0.0, "digits": 3, "confirmed": 0.4},
    {"repeats": 0.0, "confirmed": 0.3, "data": 3, "noise": 0.03},
]
ASKED = [
    Filters(),
    Filters(method="pilora"),
    Filters(max_params=4001, max_step_time=0.13),
    Filters(min_params=16_000, base="base-1"),
    Filters(sweep="sweep-3", max_memory=2**30 + 2**20 * 8),
    Filters(since_ms=1_700_000_060_000, arm="joint"),
]


def of_all(found: list[BestRow], facts: dict[str, RunFacts], asked: Filters) -> list[BestRow]:
    """The rows that meet the filters, best first, of those of every trial."""

    def is_who(row: BestRow) -> bool:
        run = facts[row.run_id]
        return (
            (asked.base is None or asked.base in row.base_uri)
            and asked.method in (None, row.method)
            and asked.arm in (None, run.arm)
            and asked.sweep in (None, row.sweep)
            and (asked.since_ms is None or run.started_ms >= asked.since_ms)
        )

    def is_what(row: BestRow) -> bool:
        metrics = facts[row.run_id].metrics
        return all(
            (
                asked.min_params is None or row.trainable_params >= asked.min_params,
                asked.max_params is None or row.trainable_params <= asked.max_params,
                asked.max_memory is None or metrics["memory_bytes"] <= asked.max_memory,
                asked.max_step_time is None or metrics["step_time"] <= asked.max_step_time,
            )
        )

    rows = [row for row in found if is_who(row)]
    rows = [row for row in rows if row.data == rows[0].data and is_what(row)]
    return sorted(rows, key=lambda row: row.rank)


@pytest.mark.parametrize("world", range(len(WORLDS)))
def test_the_best_of_few_that_are_read_are_the_best_of_all(database: str, world: int) -> None:
    made = ManySweeps(sweeps=5, trials=30, seed=world, seeds=2, padding=False, **WORLDS[world])
    made.write(database)
    every = RecordedRuns(database)
    found = [row for _, row in recorded(database, {"task": "task0"})]
    facts = {run.run_id: run for run in every.search({"kind": "trial"}, every.experiments())}
    for asked in ASKED:
        whole = of_all(found, facts, asked)
        for count in (1, 4):
            leaders = Leaders(every, "task0", asked, first=10, page=12)
            assert leaders.is_told
            assert leaders.top(count) == whole[:count]
        assert Leaders(every, "task0", asked, first=10, page=12).front() == front_of(whole)


def test_a_sweep_s_own_run_tells_what_its_trials_do(database: str) -> None:
    ManySweeps(sweeps=2, trials=30, seeds=2, repeats=0.3, padding=False).write(database)
    runs = RecordedRuns(database)
    sweeps = runs.search({"kind": "sweep"}, runs.experiments())
    for sweep in sweeps:
        told = told_by(sweep)
        read = summary_of(runs.search({}, runs.experiments(), sweep.run_id))
        assert told is not None
        assert told.as_tag() == read.as_tag()
        assert told.noise == read.noise > 0
        assert told_by(type(sweep)(**{**vars(sweep), "status": "running"})) is None
        assert told_by(type(sweep)(**{**vars(sweep), "summary": "torn {"})) is None
        assert (
            told_by(type(sweep)(**{**vars(sweep), "summary": json.dumps({"version": 9})})) is None
        )


HOSTILE = [
    "x' OR 1=1 --", 'a"b', "b`c", "d\\e", "per%cent", "under_score", "naïve ☃", "new\nline", "'",
    "); drop table runs; --", "x" * 10_000, "nul\0", "\udc80", " ", "",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=[str(i) for i in range(len(HOSTILE))])
def test_no_name_finds_more_than_itself_or_breaks_anything(database: str, name: str) -> None:
    ManySweeps(sweeps=1, trials=3, padding=False).write(database)
    assert best(database, name) == []
    assert best(database, "task0") != []
    for asked in ("base", "arm", "sweep"):
        assert best(database, "task0", where=Filters(**{asked: name})) == [] or name in (
            "",
            " ",
            "'",
        )
    assert best(database, "task0", where=Filters(tags={"team": name})) == []
    assert best(database, "task0", where=Filters(tags={f"key {name}": "x"})) == []
