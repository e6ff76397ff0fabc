"""The three sentences are true of each state that a sweep can be in."""

from __future__ import annotations

import re
from typing import Any

import pytest

from search.objective import Objective
from search.queries.sweep_record import SweepRecord
from search.reports.sweep.answer import answer_of, luck_of
from tests.search.reports.records import record, sweep_run, trial

LORA, TASO = trial(0, "lora", 0.80, 2000), trial(1, "taso", 0.85, 500)
FAR = {0: [0.70, 0.71, 0.72], 1: [0.80, 0.81, 0.82]}
NEAR = {0: [0.70, 0.75, 0.80], 1: [0.71, 0.76, 0.80]}
WORSE = {0: [0.80, 0.81, 0.82], 1: [0.70, 0.71, 0.72]}
LEARNED = {"constant_answer_dev": 0.9}

CASES: list[tuple[str, SweepRecord, str, str, str]] = [
    ("nothing began", record([], run=sweep_run()), "No trial searched", "No trial has run to its "
     "end, so nothing can be said", "ranksweep trials movie list"),
    ("nothing complete", record([trial(0, "lora", None, status="failed")]), "1 failed",
     "No trial has run to its end", "ranksweep trials movie list"),
    ("running", record([LORA, trial(1, "taso", 0.7, status="running")],
                       run=sweep_run(status="running", host="elsewhere")),
     "The sweep still runs: so far 2 trials", "On dev lora is best", "ranksweep watch movie"),
    ("interrupted", record([LORA, TASO], run=sweep_run(status="interrupted", error="Ctrl-C")),
     "The sweep was interrupted: 2 trials of lora and taso", "0.0500 from tuned LoRA's 0.8000",
     "ranksweep launch .ranksweep/sweeps/movie/sweep.yaml --resume"),
    ("nothing learned", record([LORA, TASO], run=sweep_run(metrics=LEARNED)), "2 trials",
     "Nothing was learned: the best accuracy on dev, 0.8500, does not beat a constant answer, "
     "0.9000", "train.epochs=10"),
    ("not confirmed", record([LORA, TASO]), "2 trials of lora and taso",
     "On dev taso is best, accuracy 0.8500 with 500 parameters (trial 1, one seed), +0.0500 from "
     "tuned LoRA's 0.8000; nothing is confirmed on test", "confirm={top: 1, seeds: 5}"),
    ("LoRA is best", record([trial(0, "lora", 0.9), TASO]), "2 trials",
     "nothing beats tuned LoRA, and the next, taso, is 0.0500 behind", "--resume"),
    ("one method", record([LORA]), "1 trial of lora", "lora alone was searched", "--resume"),
    ("LoRA failed", record([trial(0, "lora", None, status="failed"), TASO, trial(2, "joint", 0.7)]),
     "3 trials", "no LoRA ran to its end, so there is no line to beat", "--resume"),
    ("better", record([LORA, TASO], FAR, on_dev=0.83), "2 ran to their end",
     "On test taso is better than tuned LoRA beyond the noise: accuracy 0.8100 against 0.7100, "
     "+0.1000 (95 % interval", "ranksweep export 00000000000000000000000000000001 --to peft"),
    ("within the noise", record([LORA, TASO], NEAR), "2 trials", "no method is better than tuned "
     "LoRA (accuracy 0.7500) beyond the noise: the best of the others, taso, is +0.0067 from it",
     "export"),
    ("worse", record([LORA, TASO], WORSE), "2 trials", "taso is worse",
     "ranksweep export 00000000000000000000000000000000"),
    ("one seed", record([LORA, TASO], {0: [0.7], 1: [0.8]}), "2 trials",
     "with so few seeds no difference can be told", "confirm.seeds=3"),
    ("nothing else confirmed", record([LORA, TASO], {0: [0.7, 0.8]}), "2 trials",
     "nothing else was confirmed", "export"),
    ("LoRA not confirmed", record([LORA, TASO], {1: [0.7, 0.8]}), "2 trials",
     "LoRA was not confirmed", "export"),
]  # fmt: skip


@pytest.mark.parametrize(("sweep", "searched", "found", "command"),
                         [case[1:] for case in CASES], ids=[case[0] for case in CASES])  # fmt: skip
def test_each_case_is_told(sweep: SweepRecord, searched: str, found: str, command: str) -> None:
    answer = answer_of(sweep)
    first, second, third = answer.sentences
    assert searched in first
    assert found in second
    assert any(command in each.line for each in answer.commands), answer.commands
    for sentence in (first, second, third):
        assert re.match(r"[A-Z\d].*\.$", sentence), sentence
        assert not re.search(r"\bnan\b|None|\binf\b| {2}|\.\.", sentence), sentence


def test_the_luck_of_the_choice_is_what_dev_has_lost_since() -> None:
    sweep = record([LORA, TASO], FAR, on_dev=0.83)
    assert sweep.comparison is not None
    taso = sweep.comparison.rows[0]
    assert luck_of(sweep, taso) == pytest.approx(0.02)
    assert "of taso's accuracy on dev when it was chosen, 0.0200 did not hold" in \
        answer_of(sweep).sentences[1]  # fmt: skip
    less = record([trial(0, "lora", 0.2), trial(1, "taso", 0.15)], FAR, on_dev=0.17,
                  objective=Objective("accuracy", "min"))  # fmt: skip
    assert less.comparison is not None
    row: Any = next(each for each in less.comparison.rows if each.arm == "taso")
    assert luck_of(less, row) == pytest.approx(0.02), "more is worse where less is better"


def test_what_a_server_has_is_asked_there() -> None:
    sweep = record([LORA, TASO], FAR, tracking_uri="http://mlflow:5000")
    assert answer_of(sweep).commands[0].line.endswith("--tracking http://mlflow:5000")
