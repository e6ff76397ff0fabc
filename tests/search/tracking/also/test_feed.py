"""A listener hears of each run once and whole, and disturbs nothing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from search.config.sweep import TrackingSettings
from search.tracking.also.feed import Feed
from search.tracking.also.listener import ToldRun
from search.tracking.also.listeners import check_also
from search.tracking.facts import Point
from search.tracking.journal import Journal
from spaces.errors import ConfigError
from tests.search.tracking.also.told import end, epoch, look, start, told


class Heard:
    """Writes down what it is told, and raises at what it is told `fails_at`."""

    def __init__(self, fails_at: str = "") -> None:
        self.heard: list[str] = []
        self._fails_at = fails_at

    def start(self, run: ToldRun, at_ms: int) -> None:
        self._note(f"{run.name} starts")

    def log(self, run: ToldRun, points: Sequence[Point]) -> None:
        for point in points:
            if point.key == "accuracy":
                self._note(f"{run.name} {point.value}")

    def end(self, run: ToldRun, state: str, error: str | None) -> None:
        self._note(f"{run.name} {state}")

    def close(self) -> None:
        self._note("closed")

    def _note(self, text: str) -> None:
        if text == self._fails_at:
            raise OSError("https://me:secret@host is away")
        self.heard.append(text)


def two_trials(journal: Journal) -> None:
    start(journal, 0, 1)
    start(journal, 1, 1)
    look(journal, 1, 2)
    epoch(journal, 0, 1, 3, 0.5)
    epoch(journal, 0, 2, 4, 0.6)
    end(journal, 0, 4, "complete")
    epoch(journal, 1, 1, 5, 0.7)


WHOLE = [
    "trial-0-narrow starts",
    "trial-1-narrow starts",
    "trial-0-narrow 0.5",
    "trial-0-narrow 0.6",
    "trial-0-narrow complete",
    "trial-1-narrow 0.7",
]


def test_the_next_launch_tells_again_of_runs_that_had_not_ended_and_of_no_other(
    tmp_path: Path,
) -> None:
    first, second, third = Heard(), Heard(), Heard()
    assert told(tmp_path, lambda: first, two_trials) == []
    assert first.heard == [*WHOLE, "closed"]
    told(tmp_path, lambda: second, lambda journal: end(journal, 1, 9, "failed", "it was cut off"))
    assert second.heard == [WHOLE[1], WHOLE[5], "trial-1-narrow failed", "closed"]
    told(tmp_path, lambda: third, lambda journal: start(journal, -1, 10, seed=7))
    assert third.heard == ["confirm-0-narrow-seed-7 starts", "closed"]


def test_a_fault_is_one_line_without_secrets_and_the_rest_is_told_by_the_next_launch(
    tmp_path: Path,
) -> None:
    first, second = Heard(fails_at="trial-0-narrow 0.6"), Heard()
    (line,) = told(tmp_path, lambda: first, two_trials)
    assert first.heard == WHOLE[:3]
    assert line.startswith("tracking.also: listener is told nothing more (")
    assert "away" in line
    assert "secret" not in line
    assert told(tmp_path, lambda: second) == []
    assert second.heard == [*WHOLE, "closed"]


def test_a_trial_that_is_started_anew_is_told_anew(tmp_path: Path) -> None:
    first, second = Heard(), Heard()
    told(tmp_path, lambda: first, two_trials)
    told(tmp_path, lambda: second, lambda journal: journal.forget(0), lambda j: start(j, 0, 20))
    assert "trial-0-narrow starts" in second.heard


def test_a_listener_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    goes_on, said = threading.Event(), list[str]()

    class Hangs(Heard):
        def start(self, run: ToldRun, at_ms: int) -> None:
            goes_on.wait(60)

    journal = Journal(tmp_path / "journal.db")
    feed = Feed(journal, "listener", Hangs, said.append, pause_s=0.01)
    two_trials(journal)
    feed.close(hurried=lambda: True)
    goes_on.set()
    feed.close()
    journal.close()
    assert ["it takes too long" in line for line in said] == [True]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_also([name])
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"tracking\.also: .*ranksweep\[{name}\]"):
        check_also([name])


@pytest.mark.parametrize(
    ("also", "words"), [(["comet"], "tensorboard"), (["wandb", "wandb"], "each once")]
)
def test_what_also_cannot_be_is_refused(also: list[str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TrackingSettings.model_validate({"also": also})
