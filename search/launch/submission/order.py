"""What a user asks for who submits a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Order:
    """A sweep that is to be submitted: its file and the options of the command line."""

    file: Path
    overrides: tuple[str, ...] = ()
    store: str | None = None
    tracking: str | None = None
    resume: bool = False
    scheduled_by: str | None = None
    base_name: str | None = None
    """What the base is a version of, where a schedule says so."""
    remote_folder: str | None = None
    """None takes that of the sweep's last job, else `~/ranksweep`."""
    shared: bool = False
    """Whether the sweep's files lie at the same paths on every node: then they do not travel."""
