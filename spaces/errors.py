"""The one hierarchy of errors that ranksweep raises on purpose.

Every message is one line a user can act on: "<key or place>: <what is wrong>; <what to do>". The
command line turns an error into its `exit_code`; anything else that escapes is a defect of
ranksweep.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RanksweepError(Exception):
    """Something failed while the work was being done (exit code 1)."""

    exit_code: int = 1


class UsageError(RanksweepError):
    """What was asked for cannot be done; found before anything is started (exit code 2)."""

    exit_code: int = 2


class ConfigError(UsageError):
    """A sweep file, a `--set` or the arguments of a command are wrong."""


class ChoiceError(UsageError):
    """A choice, or the plan that it asks for, cannot be."""


class ProfileError(UsageError):
    """A profile file is wrong, or lacks what is asked of it."""


class DataError(UsageError):
    """The data of a task cannot be used."""


class BaseModelError(UsageError):
    """A base cannot be found or loaded, or has no such target modules."""


class StoreError(RanksweepError):
    """The object storage that holds profiles failed or holds something broken."""


class TrackingError(RanksweepError):
    """The tracking server cannot be reached or refused a write."""


class JobError(RanksweepError):
    """A job of the resident workers failed."""


class CancelledJobError(JobError):
    """A job of the resident workers was cancelled."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which of the `known` words is meant by an unknown `word`.

    Returns the tail of an error message: "did you mean 'rank'?" where one is near, else "use one of
    a, b, c".
    """
    words = list(known)
    by_lower = {each.lower(): each for each in words}
    close = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{by_lower[close[0]]}'?"
    return f"use one of {', '.join(words)}"


def one_line(failure: BaseException) -> str:
    """What a failure says, in one line; with its type where it was not written for people."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    if lines and isinstance(failure, RanksweepError):
        return lines[0]  # written for people
    return f"{type(failure).__name__}: {lines[0]}" if lines else type(failure).__name__


def reason_of(error: Exception) -> str:
    """What another package's error says, in one line; its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def shown(text: str, longest: int = 80) -> str:
    """Text from outside as it may stand in an error: in one line, printable and not too long."""
    cut = text if len(text) <= longest else f"{text[:longest]}..."
    return cut if cut.isprintable() else ascii(cut)
