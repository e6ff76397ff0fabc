"""What a user sees while a sweep runs: a panel on a terminal, plain lines elsewhere, on stderr."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.progress import Progress
from search.wording import duration, figure

STEP_LINE_SECONDS = 5.0
LAST_LINES = 5
STATE_STYLES = {"complete": "green", "pruned": "yellow", "failed": "red"}


@dataclass
class _Running:
    method: str
    params: int | None
    started: float
    epoch: int = 0
    epochs: int = 0
    value: float | None = None


class View(Progress, AbstractContextManager["View"]):
    """Progress of one sweep of `trials` trials.

    On a terminal it keeps one panel up to date, which starts with the first call; elsewhere it
    writes a line per event, those of single profile steps at most every few seconds. `console` is
    the stderr of this process unless given; `clock` gives seconds.
    """

    def __init__(
        self,
        name: str = "",
        trials: int = 0,
        *,
        metric: str = "value",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.listener = None
        self._name = name
        self._trials = trials
        self._metric = metric
        self._console = console if console is not None else Console(stderr=True)
        self._draws = self._console.is_terminal and not self._console.is_dumb_terminal
        self._clock = clock
        self._lock = threading.RLock()
        self._started = clock()
        self._stage = ""
        self._detail = ""
        self._profile: tuple[int, int] | None = None
        self._step_line_at: float | None = None
        self._running: dict[int, _Running] = {}
        self._states: Counter[str] = Counter()
        self._durations: list[float] = []
        self._widest = 0
        self._best = ""
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._live: Live | None = None
        self._closed = False

    def __exit__(self, *_: object) -> None:
        self.close()

    def stage(self, name: str, detail: str = "") -> None:
        with self._lock:
            if (name, detail) == (self._stage, self._detail):
                return
            self._stage, self._detail = name, detail
            self._profile = None
            self._step_line_at = None
            self._say(f"{name}: {detail}" if detail else name, keep=False)

    def profile_step(self, done: int, total: int) -> None:
        with self._lock:
            self._profile = (done, total)
            now = self._clock()
            due = self._step_line_at is None or now - self._step_line_at >= STEP_LINE_SECONDS
            if self._draws or (not due and done < total):
                self._refresh()
                return
            self._step_line_at = now
            self._say(f"profile: step {done} of {total}", keep=False)

    def trial_started(self, number: int, method: str, params: int | None = None) -> None:
        with self._lock:
            self._running[number] = _Running(method, params, self._clock())
            self._widest = max(self._widest, len(self._running))
            size = f", {params:,} parameters" if params is not None else ""
            self._say(f"trial {number}: {method}{size}", keep=False)

    def trial_epoch(self, number: int, epoch: int, epochs: int, value: float | None) -> None:
        with self._lock:
            running = self._running.get(number)
            if running is not None:
                running.epoch, running.epochs, running.value = epoch, epochs, value
            self._say(
                f"trial {number}: epoch {epoch} of {epochs}, {self._metric} {figure(value)}",
                keep=False,
            )

    def trial_finished(self, number: int, state: str, value: float | None = None) -> None:
        with self._lock:
            running = self._running.pop(number, None)
            self._states[state] += 1
            took = ""
            if running is not None:
                seconds = self._clock() - running.started
                self._durations.append(seconds)
                took = f" after {duration(seconds)}"
            method = f" {running.method}" if running is not None else ""
            what = f", {self._metric} {figure(value)}" if value is not None else ""
            self._say(f"trial {number}:{method} {state}{what}{took}")

    def best(self, number: int, method: str, value: float, params: int | None = None) -> None:
        size = f" with {params:,} parameters" if params is not None else ""
        best = f"{self._metric} {figure(value)}, trial {number} ({method}){size}"
        with self._lock:
            if best != self._best:
                self._best = best
                self._say(f"best so far: {best}", keep=False)

    def message(self, text: str) -> None:
        line = " ".join(text.split())
        if self.listener is not None:
            self.listener(line)
        with self._lock:
            self._say(line)

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
        """Estimated seconds until the last trial ends, from the trials that are over, or None."""
        with self._lock:
            left = self._trials - sum(self._states.values())
            if not self._durations or left <= 0:
                return None
            mean = sum(self._durations) / len(self._durations)
            now = self._clock()
            spent = sum(min(now - running.started, mean) for running in self._running.values())
            return max(0.0, left * mean - spent) / max(1, self._widest)

    # -- drawing -----------------------------------------------------------------------------------

    def _say(self, line: str, *, keep: bool = True) -> None:
        """A line where there is no terminal; on one, it joins the panel if worth keeping."""
        if not self._draws:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
            return
        if keep:
            self._lines.append(line)
        self._refresh()

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
                done, total = self._profile
                parts.append(_bar("profile steps", done, total))
            if self._trials and (self._running or self._states):
                parts.append(_bar("trials", sum(self._states.values()), self._trials))
                parts.append(self._counts())
            for number, running in sorted(self._running.items()):
                parts.append(_running_line(number, running, self._metric))
            if self._best:
                parts.append(Text.assemble(("best  ", "bold"), self._best))
            parts.extend(Text(line, style="dim", overflow="ellipsis") for line in self._lines)
            return Panel(Group(*parts), title=f"ranksweep {self._name}".strip(), title_align="left")

    def _headline(self) -> Text:
        elapsed = duration(self._clock() - self._started)
        left = self.seconds_left
        ahead = f", about {duration(left)} left" if left is not None else ""
        return Text.assemble(
            (self._stage or "starting", "bold cyan"),
            f"  {self._detail}" if self._detail else "",
            (f"  [{elapsed}{ahead}]", "dim"),
        )

    def _counts(self) -> Text:
        text = Text(f"{len(self._running)} running")
        for state, count in sorted(self._states.items()):
            text.append(f", {count} {state}", style=STATE_STYLES.get(state, ""))
        return text


def _bar(label: str, done: int, total: int) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(
        label, ProgressBar(total=max(total, 1), completed=done, width=30), f"{done}/{total}"
    )
    return grid


def _running_line(number: int, running: _Running, metric: str) -> Text:
    text = f"trial {number}  {running.method}"
    if running.params is not None:
        text += f"  {running.params:,} parameters"
    if running.epochs:
        text += f"  epoch {running.epoch}/{running.epochs}"
    if running.value is not None:
        text += f"  {metric} {figure(running.value)}"
    return Text(text, overflow="ellipsis")
