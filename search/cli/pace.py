"""How long something takes, told by how fast it has gone so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass
class Steps:
    """Steps that are being done one after another, as they were told: at times in seconds."""

    first: tuple[float, int] | None = None
    at: float = 0.0
    done: int = 0
    total: int = 0

    def tell(self, now: float, done: int, total: int) -> None:
        """`done` of `total` steps are over; fewer than before where they begin anew."""
        if self.first is None or done < self.done or total != self.total:
            self.first = now, done
        self.at, self.done, self.total = now, done, total

    def seconds_left(self, now: float) -> float | None:
        """Until the last is done, at the speed of all since the first that was told; None where
        that was the last, too."""
        if self.first is None or self.done <= self.first[1]:
            return None
        began, before = self.first
        each = (self.at - began) / (self.done - before)
        return max(0.0, (self.total - self.done) * each - (now - self.at))


@dataclass(frozen=True)
class Standing:
    """A running trial: how long it has run, and how long it will yet, where its steps tell."""

    elapsed: float
    left: float | None


def trials_left_seconds(
    *,
    waiting: int,
    later: int,
    running: Sequence[Standing],
    complete: Sequence[float],
    pruned: Sequence[float],
    at_once: int,
) -> float | None:
    """Seconds until all trials are over; None while nothing tells how long one takes.

    Those that wait take as long as those that are over took, the `later` ones as long as the
    complete; before there are any, as long as those that run will have taken.
    """
    told = [each.elapsed + each.left for each in running if each.left is not None]
    whole = [*complete, *pruned] or told
    if not whole:
        return None
    usual, full = fmean(whole), fmean(complete or whole)
    to_go = [max(0.0, usual - each.elapsed) if each.left is None else each.left for each in running]
    shared_out = (waiting * usual + sum(to_go)) / max(1, at_once)
    return max(shared_out, *to_go, 0.0) + later * full / max(1, at_once)
