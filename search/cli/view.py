"""What a user sees while a sweep runs: a panel on a terminal, plain lines elsewhere, on stderr."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.cli.pace import Standing, Steps, trials_left_seconds
from search.progress import Progress
from search.wording import duration, figure, percent

LINE_SECONDS = 60.0
"""Where there is no terminal, how far a stage is stands on one line in so many seconds."""
LAST_LINES = 5
WIDE = 110
"""From so many columns on the table of what runs has all its columns."""
STATE_STYLES = {"complete": "green", "pruned": "yellow", "failed": "red"}
DONE = ("complete", "pruned")
"""The states of trials that fill the bar: the others were not measured."""
Trial = tuple[int, int | None]


@dataclass
class _Running:
    method: str
    params: int | None
    started: float
    epoch: int = 0
    epochs: int = 0
    value: float | None = None
    collapsed: bool = False
    steps: Steps = field(default_factory=Steps)
    learning_rate: float | None = None
    rows: float = 1.0
    looks: float = 0.0
    """The largest share of the rows that it was measured after."""


class View(Progress, AbstractContextManager["View"]):
    """Progress of one sweep.

    On a terminal it keeps one panel up to date, which starts with the first call; elsewhere it
    writes a line per event, and once a minute how far it is. `console` is the stderr of this
    process unless given; `clock` gives seconds.
    """

    def __init__(
        self,
        name: str = "",
        *,
        metric: str = "value",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.listener: Callable[[str], object] | None = None
        self._name = name
        self._metric = metric
        self._console = console if console is not None else Console(stderr=True)
        self._draws = self._console.is_terminal and not self._console.is_dumb_terminal
        self._clock = clock
        self._lock = threading.RLock()
        self._started = clock()
        self._stage = ""
        self._detail = ""
        self._trials = self._later = 0
        self._profile: Steps | None = None
        self._rate: float | None = None
        self._line_at: float | None = None
        self._running: dict[Trial, _Running] = {}
        self._states: Counter[str] = Counter()
        self._durations: dict[str, list[float]] = {state: [] for state in DONE}
        self._widest = 0
        self._best = ""
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._live: Live | None = None
        self._closed = False

    def __exit__(self, *_: object) -> None:
        self.close()

    def were_over(self, states: Mapping[str, int]) -> None:
        """So many trials of the stage had ended in each state before anyone looked."""
        with self._lock:
            self._states.update(states)
            self._refresh()

    def stage(self, name: str, detail: str = "", trials: int = 0, later: int = 0) -> None:
        with self._lock:
            if (name, detail) == (self._stage, self._detail):
                return
            if name != self._stage:
                self._trials, self._later = trials, later
                self._states.clear()
            self._stage, self._detail = name, detail
            self._profile, self._line_at = None, self._clock() if trials else None
            self._say(f"{name}: {detail}" if detail else name, keep=False)

    def profile_step(self, done: int, total: int, learning_rate: float | None = None) -> None:
        with self._lock:
            if self._profile is None:
                self._profile = Steps()
            self._profile.tell(self._clock(), done, total)
            self._rate = learning_rate
            self._refresh()
            if self._is_time_for_a_line() or done == total:
                self._say_how_far(f"profile: {self._profile_in_words()}")

    def trial_started(
        self,
        number: int,
        method: str,
        params: int | None = None,
        seed: int | None = None,
        *,
        ago: float = 0.0,
    ) -> None:
        """A trial has started, so many seconds `ago`."""
        with self._lock:
            self._running[number, seed] = _Running(method, params, self._clock() - ago)
            self._widest = max(self._widest, len(self._running))
            size = f", {params:,} parameters" if params is not None else ""
            self._say(f"{_named(number, seed)}: {method}{size}", keep=False)

    def one_more_trial(self) -> None:
        with self._lock:
            self._trials += 1
            self._refresh()

    def trial_steps(
        self,
        number: int,
        done: int,
        total: int,
        learning_rate: float | None = None,
        seed: int | None = None,
        rows: float = 1.0,
    ) -> None:
        with self._lock:
            running = self._running.get((number, seed))
            if running is None:
                return
            if rows != running.rows:  # trained anew
                running.rows, running.steps = rows, Steps()
            running.steps.tell(self._clock(), done, total)
            running.learning_rate = learning_rate
            self._refresh()
            if self._is_time_for_a_line():
                self._say_how_far(self._trials_in_words())

    def trial_epoch(
        self, number: int, epoch: int, epochs: int, value: float | None, collapsed: bool = False
    ) -> None:
        with self._lock:
            running = self._running.get((number, None))
            if running is not None:
                running.epoch, running.epochs, running.value = epoch, epochs, value
                running.collapsed = collapsed
            self._say(
                f"trial {number}: epoch {epoch} of {epochs}, {self._metric} {figure(value)}"
                f"{_one_class(collapsed)}",
                keep=False,
            )

    def trial_look(self, number: int, share: float, value: float | None) -> None:
        with self._lock:
            running = self._running.get((number, None))
            if running is not None:
                running.looks = share
            what = f"{self._metric} {figure(value)}"
            self._say(f"trial {number}: look at {percent(share)} of the rows, {what}", keep=False)

    def trial_finished(
        self,
        number: int,
        state: str,
        value: float | None = None,
        seed: int | None = None,
        collapsed: bool = False,
    ) -> None:
        with self._lock:
            running = self._running.pop((number, seed), None)
            self._states[state] += 1
            took = ""
            if running is not None:
                seconds = self._clock() - running.started
                if state in DONE:
                    self._durations[state].append(seconds)
                took = f" after {duration(seconds)}"
            method = f" {running.method}" if running is not None else ""
            what = f", {self._metric} {figure(value)}" if value is not None else ""
            if seed is None:  # the confirmation tells by itself what it has measured
                self._say(f"trial {number}:{method} {state}{what}{_one_class(collapsed)}{took}")

    def best(self, number: int, method: str, value: float, params: int | None = None) -> None:
        size = f" with {params:,} parameters" if params is not None else ""
        best = f"{self._metric} {figure(value)}, trial {number} ({method}){size}"
        with self._lock:
            if best != self._best:
                self._best = best
                self._say(f"best so far: {best}", keep=False)

    def message(self, text: str) -> None:
        with self._lock:
            self._say(" ".join(text.split()))

    def log(self, text: str) -> None:
        """Lines for the log of the launch alone."""
        if self.listener is not None:
            self.listener(f"the end\n{text.rstrip()}")

    def close(self) -> None:
        """Take the panel down; its last state stays on the screen. May be called twice."""
        with self._lock:
            self._closed = True
            live, self._live = self._live, None
        # Outside the lock: the panel's own thread may be waiting for it to draw the last frame.
        if live is not None:
            live.stop()

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the last trial ends, those of later stages too, or None.

        By the trials that are over and by the steps of those that run; nothing before there are
        such.
        """
        with self._lock:
            now = self._clock()
            if self._profile is not None:
                return self._profile.seconds_left(now)
            waiting = max(0, self._trials - sum(self._states.values()) - len(self._running))
            if waiting + self._later + len(self._running) == 0:
                return None
            return trials_left_seconds(
                waiting=waiting,
                later=self._later,
                running=[
                    Standing(now - each.started, each.steps.seconds_left(now))
                    for each in self._running.values()
                ],
                complete=self._durations["complete"],
                pruned=self._durations["pruned"],
                at_once=self._widest,
            )

    # -- drawing -----------------------------------------------------------------------------------

    def _say(self, line: str, *, keep: bool = True) -> None:
        """A line where there is no terminal; on one, it joins the panel if worth keeping."""
        if self.listener is not None:
            self.listener(line)
        if not self._draws:
            self._print(line)
            return
        if keep:
            self._lines.append(line)
        self._refresh()

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _is_time_for_a_line(self) -> bool:
        return self._line_at is None or self._clock() - self._line_at >= LINE_SECONDS

    def _say_how_far(self, line: str) -> None:
        """A line where there is no terminal; it is not for the log."""
        self._line_at = self._clock()
        if not self._draws:
            self._print(line)

    def _refresh(self) -> None:
        if self._closed or not self._draws:
            return
        if self._live is None:
            self._live = Live(
                console=self._console, get_renderable=self._panel, refresh_per_second=4
            )
            self._live.start()

    def _panel(self) -> RenderableType:
        with self._lock:
            parts: list[RenderableType] = [self._headline()]
            if self._profile is not None:
                parts.append(_bar("profile steps", self._profile.done, self._profile.total))
                if self._rate is not None:
                    parts.append(Text(f"learning rate {figure(self._rate)}", style="dim"))
            if self._trials and (self._running or self._states):
                done = sum(self._states[state] for state in DONE)
                parts.append(_bar("trials", done, self._trials))
                parts.append(self._counts())
            if self._running:
                parts.append(self._what_runs())
            if self._best:
                parts.append(Text.assemble(("best  ", "bold"), self._best))
            parts.extend(Text(line, style="dim", overflow="ellipsis") for line in self._lines)
            return Panel(Group(*parts), title=f"ranksweep {self._name}".strip(), title_align="left")

    def _headline(self) -> Text:
        elapsed = duration(self._clock() - self._started)
        return Text.assemble(
            (self._stage or "starting", "bold cyan"),
            f"  {self._detail}" if self._detail else "",
            (f"  [{elapsed}{self._left_in_words()}]", "dim"),
        )

    def _left_in_words(self) -> str:
        left = self.seconds_left
        return f", about {duration(left)} left" if left is not None else ""

    def _counts(self) -> Text:
        text = Text(f"{len(self._running)} running")
        for state, count in sorted(self._states.items()):
            text.append(f", {count} {state}", style=STATE_STYLES.get(state, ""))
        return text

    def _what_runs(self) -> Table:
        """A row for every trial that runs: how far it is, and what it was last measured to be."""
        rows = [
            self._cells(trial, each)
            for trial, each in sorted(self._running.items(), key=lambda item: item[1].started)
        ]
        hidden: set[str] = set() if self._console.width >= WIDE else {"params", "epoch"}
        hidden |= {
            name for name in ("seed", "epoch", self._metric) if not any(r[name] for r in rows)
        }
        shown = [name for name in rows[0] if name not in hidden]
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in shown:
            if name == "method":  # the one column that gives way where there is little room
                table.add_column(name, overflow="ellipsis")
            else:
                table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(row[name] or "-", no_wrap=True) for name in shown))
        return table

    def _cells(self, trial: Trial, each: _Running) -> dict[str, str]:
        now = self._clock()
        left = each.steps.seconds_left(now)
        return {
            "trial": str(trial[0]),
            "seed": "" if trial[1] is None else str(trial[1]),
            "method": each.method,
            "params": "" if each.params is None else f"{each.params:,}",
            "epoch": _epoch_in_words(each),
            "step": f"{each.steps.done}/{each.steps.total}" if each.steps.total else "",
            "lr": "" if each.learning_rate is None else figure(each.learning_rate),
            "elapsed": duration(now - each.started),
            "left": "" if left is None else duration(left),
            self._metric: "" if each.value is None else figure(each.value) + " !" * each.collapsed,
        }

    def _profile_in_words(self) -> str:
        assert self._profile is not None
        words = f"step {self._profile.done} of {self._profile.total}"
        if self._rate is not None:
            words += f", learning rate {figure(self._rate)}"
        return words + self._left_in_words()

    def _trials_in_words(self) -> str:
        """How far the stage is, and every trial that runs."""
        done = sum(self._states[state] for state in DONE)
        left = self._left_in_words() + (", with the confirmation" if self._later else "")
        words = [f"{done} of {self._trials} trials are done{left}"]
        for trial, each in sorted(self._running.items(), key=lambda item: item[1].started):
            cells = self._cells(trial, each)
            step = f" at step {each.steps.done} of {each.steps.total}" if cells["step"] else ""
            told = [f"{_named(*trial)}{step}"]
            told += [f"learning rate {cells['lr']}"] if cells["lr"] else []
            told += [f"{cells['elapsed']} elapsed"]
            told += [f"about {cells['left']} left"] if cells["left"] else []
            words.append(", ".join(told))
        return "; ".join(words)


def lines_view(name: str, *, metric: str, to: TextIO | None) -> View:
    """One that writes plain lines to `to`, whatever that is; nothing where there is none."""
    console = Console(
        file=to, quiet=to is None, force_terminal=False, force_jupyter=False, color_system=None
    )
    return View(name, metric=metric, console=console)


def _one_class(collapsed: bool) -> str:
    return ", collapsed: it predicts one class alone" if collapsed else ""


def _named(number: int, seed: int | None) -> str:
    return f"trial {number}" if seed is None else f"trial {number}, seed {seed}"


def _epoch_in_words(each: _Running) -> str:
    if each.epochs:
        return f"{each.epoch}/{each.epochs}"
    share = each.rows if each.rows < 1 else each.looks
    return f"looks {percent(share)}" if share else ""


def _bar(label: str, done: int, total: int) -> Table:
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(total, 1), completed=done, width=30)
    grid.add_row(label, bar, f"{done}/{total}")
    return grid
