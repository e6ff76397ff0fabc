"""Where a sweep stands, read from MLflow alone, and how it is shown."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search.cli.main import main
from search.cli.output import plain_text
from search.cli.view import View
from search.cli.watch import Feed, drawn_state, followed
from search.queries.sweep_state import SweepReader, SweepState
from search.tracking.facts import at_step
from search.tracking.runs import RecordedRuns
from search.tracking.tracker import Tracker
from spaces.errors import ConfigError, TrackingError
from tests.search.tracked import log_epoch, start_trial

TAGS = {"task": "movie", "metric": "accuracy", "mode": "max", "trials": 4, "profile_key": "k"}
CONFIG = {"search": {"trials": 4}, "train": {"epochs": 3}}


class Sweep:
    """A sweep in a database, as its launch writes it."""

    def __init__(self, database: str) -> None:
        self.uri = database
        self.tracker = Tracker(database, "movie")
        self.run_id = self.tracker.start_sweep("movie-demo", CONFIG, TAGS)

    def trial(self, number: int, epoch: int, value: float, state: Any = None, **tags: Any) -> str:
        choice = {"method": "lora", "rank": number + 1, "learning_rate": 1e-3}
        run = start_trial(self.tracker, self.run_id, number, choice, tags={"arm": "lora", **tags})
        self.tracker.log(run, metrics=at_step({"trainable_params": 100.0 + number}, 0))
        if epoch:
            log_epoch(self.tracker, run, epoch, {"accuracy": value})
        if state is not None:
            self.tracker.end(run, state)
        return run

    def reader(self, sweep: str = "movie-demo") -> SweepReader:
        return SweepReader(RecordedRuns(self.uri, 0.0), sweep)


@pytest.fixture
def sweep(database: str) -> Sweep:
    return Sweep(database)


def view() -> tuple[View, io.StringIO]:
    out = io.StringIO()
    return View("movie-demo", metric="accuracy", console=Console(file=out, width=200)), out


def test_a_sweep_is_read_as_far_as_it_is(sweep: Sweep) -> None:
    assert sweep.reader().look().stage == "profile"
    sweep.trial(0, 3, 0.8, "complete")
    sweep.trial(1, 1, 0.6, "pruned")
    sweep.trial(2, 2, 0.7)
    sweep.trial(3, 3, 0.95, "complete", asked_by="cloned", clone_of=0, warm_from=0)
    state = sweep.reader(sweep.run_id).look()
    assert (state.stage, state.status, state.launch) == ("search", "running", "unknown")
    assert state.trials == 5, "what a user has asked for is none of search.trials"
    assert state.states == {"complete": 2, "pruned": 1}
    (running,) = state.running
    assert (running.number, running.epoch, running.epochs, running.value) == (2, 2, 3, 0.7)
    # What started from the weights of another is ranked with none.
    assert [(row.number, row.value) for row in state.best] == [(0, 0.8)]
    shown = plain_text(drawn_state(state))
    assert "movie-demo: running, search" in shown
    assert "trials: 2 complete, 1 pruned; 1 running, 5 in all" in shown
    assert "trial 3 (lora) started from the weights of trial 0, and is ranked with none" in shown
    with pytest.raises(ConfigError, match="SWEEP: MLflow has no sweep of the name or run id 'x'"):
        sweep.reader("x")


def test_a_choice_has_the_mean_of_its_seeds(sweep: Sweep) -> None:
    sweep.trial(0, 3, 0.8, "complete")
    choice = {"method": "lora", "rank": 1, "learning_rate": 1e-3}
    again = start_trial(sweep.tracker, sweep.run_id, 5, choice, tags={"arm": "lora", "repeat": 1})
    log_epoch(sweep.tracker, again, 3, {"accuracy": 0.6})
    sweep.tracker.end(again, "complete")
    (best,) = sweep.reader().look().best
    assert (best.number, best.seeds) == (0, 2)
    assert best.value == pytest.approx(0.7)


def test_what_was_over_is_counted_and_what_happens_since_is_told(sweep: Sweep) -> None:
    sweep.trial(0, 3, 0.8, "complete")
    running = sweep.trial(1, 1, 0.5)
    shown, out = view()
    feed, reader = Feed(shown), sweep.reader()
    feed.show(reader.look())
    told = out.getvalue().splitlines()
    assert told == [
        "search: 4 trials",
        "trial 1: lora, 101 parameters",
        "trial 1: epoch 1 of 3, accuracy 0.5",
        "best so far: accuracy 0.8, trial 0 (lora) with 100 parameters",
    ]
    feed.show(reader.look())
    assert out.getvalue().splitlines() == told, "nothing is told twice"
    log_epoch(sweep.tracker, running, 3, {"accuracy": 0.9})
    sweep.tracker.end(running, "complete")
    sweep.trial(2, 0, 0.0, "failed", asked_by="enqueued")
    feed.show(reader.look())
    since = [line.partition(" after ")[0] for line in out.getvalue().splitlines()[len(told) :]]
    assert since == [
        "trial 1: epoch 3 of 3, accuracy 0.9",
        "trial 1: lora complete, accuracy 0.9",
        "trial 2: lora (enqueued), 102 parameters",
        "trial 2: lora (enqueued) failed",
        "best so far: accuracy 0.9, trial 1 (lora) with 101 parameters",
    ]


def test_a_server_that_is_away_is_said_once_and_asked_again(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.cli.watch.LOOK_S", 0.01)
    first = sweep.reader().look()
    away = TrackingError("tracking: http://mlflow: connection refused")
    looks: Iterator[SweepState | TrackingError] = iter(
        [away, away, first, replace(first, launch="ended", status="complete")]
    )

    class Reader:
        def look(self) -> SweepState:
            found = next(looks)
            if isinstance(found, TrackingError):
                raise found
            return found

    shown, out = view()
    reader: Any = Reader()
    assert followed(reader, first, shown).status == "complete"
    said = [line for line in out.getvalue().splitlines() if "profile" not in line]
    assert said[-2:] == [f"{away}; it is asked again", "MLflow answers again"]
    assert len(said) == 3  # the first: that it cannot be told from here whether its launch lives


@pytest.mark.parametrize("arguments", [["--once"], ["--json"], []])
def test_a_sweep_whose_launch_is_gone_is_said_to_be_with_exit_code_1(
    sweep: Sweep, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    sweep.trial(0, 3, 0.8, "complete")
    sweep.trial(1, 2, 0.7)
    folder = tmp_path / ".ranksweep" / "sweeps" / "movie-demo"
    here = {"host": socket.gethostname(), "folder": str(folder)}
    sweep.tracker.log(sweep.run_id, tags=here)
    with pytest.raises(SystemExit) as left:
        main(["watch", "movie-demo", "--tracking", sweep.uri, *arguments])
    assert left.value.code == 1
    printed = capfd.readouterr()
    said = "movie-demo is interrupted (its launch is gone): launch --resume goes on with it"
    assert said in printed.out + printed.err


def test_the_stage_of_the_confirmation_follows(sweep: Sweep, tmp_path: Path) -> None:
    shown, out = view()
    feed, reader = Feed(shown), sweep.reader()
    running = sweep.trial(0, 1, 0.5)
    feed.show(reader.look())
    log_epoch(sweep.tracker, running, 3, {"accuracy": 0.9})
    sweep.tracker.end(running, "complete")
    choice = {"method": "lora", "rank": 1, "learning_rate": 1e-3}
    tags = {"arm": "lora", "seed": 1}
    start_trial(sweep.tracker, sweep.run_id, 0, choice, tags=tags, kind="confirm")
    feed.show(reader.look())
    lines = [line.partition(" after ")[0] for line in out.getvalue().splitlines()]
    assert "trial 0: lora complete, accuracy 0.9" in lines
    assert lines.index("confirm: the best on test") > lines.index(
        "trial 0: lora complete, accuracy 0.9"
    )
    assert "trial 0, seed 1: lora" in lines
