"""What a user sees while a sweep runs: lines without a terminal, one panel on a terminal."""

from __future__ import annotations

import io
import re
import threading
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from search.cli.launch_view import results_table
from search.cli.view import LINE_SECONDS, View
from search.queries.best_choice import BestChoice
from search.wording import duration, figure, knobs


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(trials: int = 0) -> tuple[View, io.StringIO, Clock]:
    """A view that writes where there is no terminal."""
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=False, width=40)
    view = View("movie", metric="accuracy", console=console, clock=clock)
    if trials:
        view.stage("search", trials=trials)
        out.truncate(0), out.seek(0)
    return view, out, clock


def lines(out: io.StringIO) -> list[str]:
    return out.getvalue().splitlines()


def test_each_event_is_one_line_without_a_terminal() -> None:
    view, out, clock = plain()
    view.stage("search", "24 trials")
    view.trial_started(3, "taso", 45_624)
    view.trial_epoch(3, 1, 2, 0.8125)
    clock.now += 12
    view.trial_finished(3, "complete", 0.84)
    view.best(3, "taso", 0.84, 45_624)
    view.message("one\n  two")
    view.close()
    assert lines(out) == [
        "search: 24 trials",
        "trial 3: taso, 45,624 parameters",
        "trial 3: epoch 1 of 2, accuracy 0.8125",
        "trial 3: taso complete, accuracy 0.84 after 12 s",
        "best so far: accuracy 0.84, trial 3 (taso) with 45,624 parameters",
        "one two",
    ]


def test_a_look_is_told_as_one_and_never_as_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    view, out, _ = plain(trials=2)
    monkeypatch.setenv("TERM", "xterm-256color")
    wide = Console(file=io.StringIO(), force_terminal=True, width=140, height=30)
    with View("movie", metric="accuracy", console=wide) as panel:
        panel.stage("search", trials=2)
        for each in (view, panel):
            each.trial_started(3, "taso")
            each.trial_steps(3, 5, 10, 1e-3, None, 0.1)
            each.trial_look(3, 0.1, 0.625)
            each.trial_steps(3, 1, 30, 1e-3, None, 0.3)
    assert lines(out)[-1] == "trial 3: look at 10% of the rows, accuracy 0.625"
    shown = wide.file.getvalue()  # type: ignore[attr-defined]
    assert "looks 30%" in shown
    assert "1/30" in shown
    assert "0.625" not in re.sub(r"look at 10% of the rows, accuracy 0\.625", "", shown)


def test_a_failed_trial_and_one_that_was_never_started_are_told() -> None:
    view, out, _ = plain()
    view.trial_started(0, "lora", None)
    view.trial_finished(0, "failed")
    view.trial_finished(9, "cancelled", None)
    assert lines(out) == [
        "trial 0: lora",
        "trial 0: lora failed after 0.0 s",
        "trial 9: cancelled",
    ]


def test_profile_steps_are_told_once_a_minute_and_at_the_end_with_the_time_left() -> None:
    view, out, clock = plain()
    view.stage("profile", "initial phase")
    for step in range(1, 101):
        view.profile_step(step, 100, 1e-3 / step)
        clock.now += LINE_SECONDS / 20
    assert lines(out)[1:4] == [
        "profile: step 1 of 100, learning rate 0.001",
        "profile: step 21 of 100, learning rate 4.762e-05, about 3 min 57 s left",
        "profile: step 41 of 100, learning rate 2.439e-05, about 2 min 57 s left",
    ]
    told = [int(line.split()[2]) for line in lines(out)[1:]]
    assert told == [1, 21, 41, 61, 81, 100]


def test_how_far_trials_are_is_told_once_a_minute_in_one_line() -> None:
    view, out, clock = plain(trials=3)
    view.trial_started(0, "lora", 1000)
    clock.now += 100
    view.trial_finished(0, "complete", 0.75)
    view.trial_started(1, "taso", 1000)
    view.trial_started(2, "joint", 1000)
    before = len(lines(out))
    for second in range(119):
        view.trial_steps(1, second, 400, 2e-3)
        view.trial_steps(2, 2 * second, 400)
        clock.now += 1
    assert lines(out)[before:] == [
        "1 of 3 trials are done, about 1 min 40 s left; trial 1 at step 0 of 400, learning rate "
        "0.002, 0.0 s elapsed; trial 2, 0.0 s elapsed",
        "1 of 3 trials are done, about 5 min 40 s left; trial 1 at step 60 of 400, learning rate "
        "0.002, 1 min 00 s elapsed, about 5 min 40 s left; trial 2 at step 118 of 400, 1 min 00 s "
        "elapsed, about 2 min 20 s left",
    ]


def test_the_log_hears_of_trials_and_not_how_far_they_are() -> None:
    view, _, clock = plain(trials=1)
    heard: list[str] = []
    view.listener = heard.append
    view.trial_started(0, "lora", 1000)
    for step in range(10):
        clock.now += LINE_SECONDS
        view.trial_steps(0, step, 10, 1e-3)
    view.trial_finished(0, "complete", 0.75)
    view.best(0, "lora", 0.75, 1000)
    assert heard == [
        "trial 0: lora, 1,000 parameters",
        "trial 0: lora complete, accuracy 0.75 after 10 min 00 s",
        "best so far: accuracy 0.75, trial 0 (lora) with 1,000 parameters",
    ]


def test_a_stage_that_goes_on_is_not_told_again() -> None:
    view, out, _ = plain()
    for step in range(3):
        view.stage("profile", "initial phase")
        view.profile_step(step, 100)
    view.stage("profile", "static pass")
    assert lines(out) == [
        "profile: initial phase",
        "profile: step 0 of 100",
        "profile: static pass",
    ]


def test_steps_of_a_trial_that_is_not_shown_are_passed_over() -> None:
    view, out, _ = plain(trials=2)
    view.trial_steps(7, 1, 10, 1e-3)
    assert lines(out) == []


def test_a_best_that_does_not_change_is_told_once() -> None:
    view, out, _ = plain()
    view.best(1, "lora", 0.5, 10)
    view.best(1, "lora", 0.5, 10)
    assert len(lines(out)) == 1


def test_time_left_is_that_of_the_trials_to_come_shared_by_those_that_run_at_once() -> None:
    view, _, clock = plain(trials=6)
    assert view.seconds_left is None
    view.trial_started(0, "lora")
    view.trial_started(1, "taso")
    clock.now += 10
    view.trial_finished(0, "complete", 0.5)
    clock.now += 20
    view.trial_finished(1, "pruned", 0.4)
    # Trials took 10 and 30 s, two at once; four of 20 s are left.
    assert view.seconds_left == pytest.approx(40.0)
    view.trial_started(2, "lora")
    clock.now += 5
    assert view.seconds_left == pytest.approx(37.5)
    for number in range(2, 6):
        view.trial_finished(number, "failed")
    assert view.seconds_left is None


def test_time_left_follows_the_steps_of_what_runs_and_knows_of_the_confirmation() -> None:
    view, _, clock = plain()
    view.stage("search", trials=3, later=2)
    view.trial_started(0, "lora")
    clock.now += 10  # until the first step
    view.trial_steps(0, 0, 100)
    assert view.seconds_left is None, "no step tells how long one takes"
    clock.now += 30
    view.trial_steps(0, 25, 100)
    # 75 steps of 1.2 s; that trial will have taken 130 s, and two and two more follow.
    assert view.seconds_left == pytest.approx(90 + 4 * 130)
    clock.now += 60
    view.trial_finished(0, "complete", 0.5)
    view.trial_started(1, "lora")
    clock.now += 40
    view.trial_finished(1, "pruned", 0.4)
    # Searched trials take 70 s on the mean, confirmed ones 100 s.
    assert view.seconds_left == pytest.approx(70 + 2 * 100)


def test_a_trial_that_begins_anew_is_timed_anew() -> None:
    view, _, clock = plain(trials=1)
    view.trial_started(0, "lora")
    for done in (0, 50):
        clock.now += 100
        view.trial_steps(0, done, 100)
    view.trial_steps(0, 1, 100)
    clock.now += 9
    view.trial_steps(0, 10, 100)
    assert view.seconds_left == pytest.approx(90.0)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("TERM", "xterm-256color")
    return Console(file=io.StringIO(), force_terminal=True, width=100, height=30)


def test_a_terminal_shows_stage_trials_best_and_last_messages(terminal: Console) -> None:
    with View("movie", metric="accuracy", console=terminal) as view:
        view.stage("search", "over 5 methods", 4)
        view.trial_started(0, "lora", 1000)
        view.trial_started(1, "taso", 2000)
        view.trial_finished(0, "complete", 0.75)
        view.trial_epoch(1, 1, 3, 0.5)
        view.best(0, "lora", 0.75, 1000)
        view.message("profile is cached")
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    last = shown[shown.rindex("ranksweep movie") :]
    for words in ("search", "over 5 methods", "1/4", "1 running", "1 complete", "accuracy 0.75"):
        assert words in last
    assert re.search(r"1 +taso .* 0\.5 ", last)
    assert "profile is cached" in last
    assert "left" in last


@pytest.mark.parametrize("width", [80, 160])
def test_a_terminal_shows_how_far_every_trial_is(width: int, terminal: Console) -> None:
    terminal.width = width
    clock = Clock()
    with View("movie", metric="accuracy", console=terminal, clock=clock) as view:
        view.stage("search", trials=12)
        view.trial_started(10, "pilora partition.rule=cumulative", 253_987)
        view.trial_started(11, "taso", 45_624)
        for done in (100, 1100):
            clock.now += 100
            view.trial_steps(10, done, 2500, 1.25e-3)
        view.trial_epoch(10, 1, 3, 0.8125)
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    last = shown[shown.rindex("ranksweep movie") :]
    (row,) = [line for line in last.splitlines() if "1100/2500" in line]
    for words in ("10", "pilora", "0.00125", "3 min 20 s", "2 min 20 s", "0.8125"):
        assert words in row
    assert ("253,987" in row) == ("1/3" in row) == (width == 160)
    assert all(cell_len(line) <= width for line in re.sub(r"\x1b\[[^m]*m", "", last).splitlines())


def test_trials_that_were_not_measured_do_not_fill_the_bar(terminal: Console) -> None:
    with View("movie", console=terminal) as view:
        view.stage("search", trials=5)
        for number, state in enumerate(("complete", "pruned", "failed", "cancelled")):
            view.trial_finished(number, state)
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    last = shown[shown.rindex("ranksweep movie") :]
    assert "2/5" in last
    assert "1 cancelled, 1 complete, 1 failed, 1 pruned" in re.sub(r"\x1b\[[^m]*m", "", last)


def test_the_confirmation_is_a_stage_of_trials_with_seeds(terminal: Console) -> None:
    with View("movie", metric="accuracy", console=terminal) as view:
        view.stage("search", trials=1)
        view.trial_started(3, "lora", 1000)
        view.trial_finished(3, "complete", 0.75)
        view.stage("confirm", "1 choices x 3 seeds on test", 3)
        for seed in (1, 2):
            view.trial_started(3, "lora", 1000, seed)
            view.trial_steps(3, 5, 10, 1e-3, seed)
        view.trial_finished(3, "complete", None, 1)
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    last = re.sub(r"\x1b\[[^m]*m", "", shown[shown.rindex("ranksweep movie") :])
    assert "1/3" in last
    assert re.search(r"trial +seed", last)
    assert re.search(r"3 +2 +lora +.*5/10", last)


def test_a_terminal_shows_the_profile_s_steps_until_the_next_stage(terminal: Console) -> None:
    with View("movie", console=terminal) as view:
        view.stage("profile", "36 modules")
        view.profile_step(7, 50, 1e-3)
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "7/50" in shown
    assert "learning rate 0.001" in shown


def test_nothing_is_drawn_after_the_view_was_closed(terminal: Console) -> None:
    view = View("movie", console=terminal)
    view.stage("search")
    view.close()
    view.close()
    before = terminal.file.getvalue()  # type: ignore[attr-defined]
    view.trial_started(0, "lora")
    assert terminal.file.getvalue() == before  # type: ignore[attr-defined]


def test_many_threads_may_report_at_once(terminal: Console) -> None:
    view = View("movie", console=terminal)
    view.stage("search", trials=200)

    def report(first: int) -> None:
        for number in range(first, first + 50):
            view.trial_started(number, "lora", number)
            view.trial_epoch(number, 1, 1, 0.5)
            view.trial_finished(number, "complete", 0.5)

    threads = [threading.Thread(target=report, args=(50 * i,), daemon=True) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    closing = threading.Thread(target=view.close, daemon=True)
    closing.start()
    closing.join(timeout=30)
    assert not closing.is_alive()
    assert "200/200" in terminal.file.getvalue()  # type: ignore[attr-defined]


def test_results_have_a_row_per_trial_with_its_knobs() -> None:
    choice = {
        "method": "pilora",
        "seed": 0,
        "learning_rate": 3.16e-4,
        "rank": 8,
        "partition": {"rule": "hits", "threshold": 0.5},
    }
    pilora = BestChoice("pilora", "pilora", 0.84321, [0.84321], 1, 123_456, 7, None, choice)
    other = replace(pilora, arm="lora [bold]rank=8", number=31)
    console = Console(file=io.StringIO(), width=140)
    console.print(results_table([pilora, other], "accuracy"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("accuracy", "pilora", "0.8432", "123,456", "0.000316", "lora [bold]rank=8", "31"):
        assert words in shown
    assert "rank=8 rule=hits threshold=0.5" in shown


def test_seeds_have_a_column_where_a_choice_was_repeated() -> None:
    once = BestChoice("lora", "lora", 0.5, [0.5], 1, 10, 0, None, {"learning_rate": 1e-3})
    for seeds in (1, 3):
        console = Console(file=io.StringIO(), width=140)
        console.print(results_table([once, replace(once, seeds=seeds)]))
        assert ("seeds" in console.file.getvalue()) == (seeds > 1)  # type: ignore[attr-defined]


def test_a_collapse_is_said_while_it_runs_and_counted_where_choices_stand() -> None:
    out = io.StringIO()
    with View("films", metric="accuracy", console=Console(file=out, width=140)) as view:
        view.trial_started(3, "lora", 10)
        view.trial_epoch(3, 1, 2, 0.507, True)
        view.trial_finished(3, "complete", 0.507, collapsed=True)
        view.trial_started(4, "lora", 10)
        view.trial_finished(4, "complete", 0.8)
    lines = out.getvalue().splitlines()
    assert [line for line in lines if "collapsed: it predicts one class alone" in line] == [
        "trial 3: epoch 1 of 2, accuracy 0.507, collapsed: it predicts one class alone",
        next(line for line in lines if line.startswith("trial 3: lora complete, accuracy 0.507, ")),
    ]
    held = BestChoice("lora", "lora", 0.84, [0.84] * 3, 3, 10, 0, None, {}, 0.837)
    fallen = replace(held, arm="taso", value=0.7, holds=0.5, collapsed=1)
    shown = Console(file=io.StringIO(), width=140)
    shown.print(results_table([held, fallen], "accuracy"))
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    for words in ("holds", "0.837", "collapsed", "1 of 3", "0 of 3"):
        assert words in text
    steady = Console(file=io.StringIO(), width=140)
    steady.print(results_table([held], "accuracy"))
    assert "collapsed" not in steady.file.getvalue()  # type: ignore[attr-defined]


def test_knobs_leave_out_what_has_its_own_column() -> None:
    choice = {"method": "lora", "learning_rate": 1e-3, "seed": 3, "rank": 8, "alpha": 16.0}
    assert knobs(choice) == "rank=8 alpha=16"
    assert knobs({"method": "lora"}) == "-"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.99, "10 s"),
        (12.4, "12 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations_read_as_a_person_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_figures_keep_four_digits() -> None:
    assert [figure(x) for x in (None, 0.84321, 2e-5, 1)] == ["-", "0.8432", "2e-05", "1"]
