"""Queries that read few trials answer what reading all of them does."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from benchmarks.many_sweeps import ManySweeps
from search.queries.best import best
from search.queries.filters import Filters, moment_ms, tags_of
from search.queries.history import history
from search.queries.leaders import Leaders
from search.queries.rows import BestRow, front_of, recorded
from search.queries.sweep_summary import summary_of, told_by
from search.queries.sweeps import sweeps
from search.tracking.facts import RunFacts
from search.tracking.runs import RecordedRuns
from spaces.errors import ConfigError

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


def test_history_and_the_list_of_sweeps_tell_what_reading_all_does(
    database: str, tmp_path: Path
) -> None:
    """Half of the sweeps tell it themselves, of one of them a leader was deleted since."""
    ManySweeps(
        sweeps=6, trials=25, seeds=2, repeats=0.2, summaries="some", padding=False, seed=3
    ).write(database)
    runs = RecordedRuns(database)
    names = runs.experiments()
    gone = next(
        told.leaders[0].run_id
        for run in runs.search({"kind": "sweep"}, names)
        if (told := told_by(run)) is not None
    )
    MlflowClient(database).delete_run(gone)
    rows: dict[str | None, list[BestRow]] = {}
    for sweep_run, row in recorded(database, {"task": "task0"}):
        rows.setdefault(sweep_run, []).append(row)
    confirmed = runs.search({"kind": "confirm"}, names)
    begun = Counter(run.parent for run in runs.search({"kind": "trial"}, names))
    for asked in (Filters(), Filters(method="taso"), Filters(max_params=5000), Filters(base="e-1")):
        kept = {
            sweep_run: [
                row
                for row in its
                if asked.method in (None, row.method)
                and row.trainable_params <= (asked.max_params or row.trainable_params)
                and (asked.base or "") in row.base_uri
            ]
            for sweep_run, its in rows.items()
        }
        best_of = {run: min(its, key=lambda row: row.rank) for run, its in kept.items() if its}
        steps = {step.sweep_run: step for step in history(database, "task0", where=asked)}
        assert steps.keys() == best_of.keys()
        for sweep_run, row in best_of.items():
            step = steps[str(sweep_run)]
            assert (step.run_id, step.value, step.holds) == (row.run_id, row.value, row.holds)
            test = [
                run.metrics["test_score"]
                for run in confirmed
                if run.parent == sweep_run and run.choice == row.choice
            ]
            assert (step.seeds, step.test) == (len(test), fmean(test) if test else None)
        listed = {each.run_id: each for each in sweeps(database, tmp_path, where=asked)}
        assert listed.keys() >= best_of.keys()
        for sweep_run, row in best_of.items():
            each = listed[sweep_run]
            assert (each.best_run, each.value) == (row.run_id, row.value)
            assert each.begun - begun[sweep_run] in (0, 1)  # one counts what was deleted


NOW = datetime(2026, 11, 30, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2026-11-30T10:00:00+00:00", 1_796_032_800_000),
        ("90min", 1_796_027_400_000),
        ("7d", 1_795_428_000_000),
        ("2w", 1_794_823_200_000),
    ],
)
def test_a_time_is_a_date_or_an_age(text: str, ms: int) -> None:
    assert moment_ms("--since", text, NOW) == ms


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: moment_ms("--since", "yesterday", NOW),
            "--since: 'yesterday' is no",
        ),
        (lambda: moment_ms("--until", "9" * 30 + "d", NOW), "--until: .* before all"),
        (lambda: tags_of(["team"]), "--tag: 'team' is no tag; write KEY=VALUE"),
        (lambda: tags_of(["a=1", "a=2"]), "--tag: 'a' cannot be two"),
        (lambda: Filters(min_params=0), "--min-params: 0 is not a number of parameters"),
        (lambda: Filters(max_step_time=0.0), "--max-step-time"),
        (lambda: Filters(since_ms=2, until_ms=1), "--since: it is after --until"),
    ],
)
def test_what_cannot_be_asked_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


HOSTILE = [
    "x' OR 1=1 --", 'a"b', "b`c", "d\\e", "per%cent", "under_score", "naïve ☃", "new\nline", "'",
    "); drop table runs; --", "x" * 10_000, "nul\0", "\udc80", " ", "",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=[str(i) for i in range(len(HOSTILE))])
def test_no_name_finds_more_than_itself_or_breaks_anything(database: str, name: str) -> None:
    ManySweeps(sweeps=1, trials=3, padding=False).write(database)
    assert best(database, name) == []
    assert best(database, "task0") != []
    for asked in (Filters(base=name), Filters(arm=name), Filters(sweep=name)):
        assert best(database, "task0", where=asked) == [] or name in (
            "",
            " ",
            "'",
        )
    assert best(database, "task0", where=Filters(tags={"team": name})) == []
    assert best(database, "task0", where=Filters(tags={f"key {name}": "x"})) == []
