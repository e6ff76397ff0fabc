"""The benchmarks' table is what their records make."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from benchmarks.results import README, RESULTS, Record, Run, newest, read_records, row, with_table

MACHINE = {
    "cores": 2,
    "cpu": "Intel Xeon",
    "memory_gib": 23,
    "python": "3.11.7",
    "packages": {"torch": "2.13.0"},
}


def a_record(what: str, command: str, result: str) -> Record:
    return Record(
        what=what,
        command=f"python benchmarks/{command}",
        commit="abc1234",
        date="2026-11-29",
        machine=MACHINE,
        load=0.5,
        figures={"seconds": {"median": 1.5, "min": 1.0, "max": 2.0}},
        text="1.5 (1.0 to 2.0) s",
        result=result,
    )


def are_numbers(figures: object) -> bool:
    if isinstance(figures, dict):
        return bool(figures) and all(are_numbers(value) for value in figures.values())
    if isinstance(figures, list):
        return bool(figures) and all(are_numbers(value) for value in figures)
    return isinstance(figures, int | float)


def test_the_table_is_what_the_records_make() -> None:
    page = README.read_text(encoding="utf-8")
    assert with_table(page, read_records(RESULTS)) == page, "run make bench-table"


def test_every_record_has_all_keys_and_its_figures_are_numbers() -> None:
    keys = [field.name for field in dataclasses.fields(Record)]
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        written = json.loads(line)
        assert list(written) == keys
        assert written["machine"].keys() == MACHINE.keys()
        assert are_numbers(written["figures"]), line
        assert written["command"].startswith("python benchmarks/")
        assert row(Record(**written)).count(" | ") == 4, line


def test_the_last_record_of_a_row_s_name_and_command_replaces_the_others() -> None:
    old, other_command, other_name, new = (
        a_record("step", "step.py", "2x"),
        a_record("step", "step.py --repeat 5", "2x"),
        a_record("memory", "step.py", "3 MiB"),
        a_record("step", "step.py", "4x"),
    )
    assert newest([old, other_command, other_name, new]) == [new, other_command, other_name]


def test_a_script_s_rows_stand_together() -> None:
    first, between, second = (
        a_record("a", "step.py", "1x"),
        a_record("b", "plans.py", "1x"),
        a_record("c", "step.py", "1x"),
    )
    assert newest([first, between, second]) == [between, first, second]


def test_a_run_appends_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr("benchmarks.results.RESULTS", results)
    monkeypatch.setattr(sys, "argv", ["/some/where/plans.py", "--repeat", "5"])
    run = Run.begin()
    for seconds in (1.23456, 2):
        run.record("a plan", {"seconds": seconds, "all": [seconds]}, f"{seconds:.1f} s", "fast")

    first, second = read_records(results)
    assert first.command == "python benchmarks/plans.py --repeat 5"
    assert first.figures == {"seconds": 1.235, "all": [1.235]}
    assert second.figures == {"seconds": 2, "all": [2]}
    assert first.machine.keys() == MACHINE.keys()
    assert (second.text, second.result, second.note) == ("2.0 s", "fast", None)
