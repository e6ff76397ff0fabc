"""What hears of a sweep's runs beside MLflow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from search.tracking.facts import Point, flattened
from search.tracking.journal import Record

_NOT_IN_A_NAME = re.compile(r"[^\w.-]")


@dataclass(frozen=True)
class ToldRun:
    """A trial or a confirmation, as the record of its start has it."""

    key: int
    """Its number in the journal, below zero of a confirmation."""
    kind: str
    number: int
    """That of the trial, of a confirmation too."""
    arm: str
    seed: int | None
    """Of a confirmation."""
    choice: Mapping[str, Any]

    @classmethod
    def of(cls, start: Record) -> ToldRun:
        """The run whose start this is."""
        body, tags = start.body, start.body["tags"]
        kind = body.get("kind", "trial")
        return cls(
            key=start.number,
            kind=kind,
            number=body.get("number", start.number),
            arm=str(tags.get("arm") or body["choice"].get("method", "unknown")),
            seed=tags.get("seed") if kind == "confirm" else None,
            choice=body["choice"],
        )

    @property
    def name(self) -> str:
        """Such as trial-7-pilora and confirm-7-pilora-seed-3; a file name."""
        seed = "" if self.seed is None else f"-seed-{self.seed}"
        return _NOT_IN_A_NAME.sub("_", f"{self.kind}-{self.number}-{self.arm}{seed}")

    @property
    def params(self) -> dict[str, Any]:
        """Its choice, with dotted keys, and its arm."""
        return {"arm": self.arm, **flattened(self.choice)}


class Listener(Protocol):
    """Is told of the runs of one launch, in order, by one thread.

    A run that an earlier launch has told of in part is told again from its start. Whatever it
    raises ends what it is told.
    """

    def start(self, run: ToldRun, at_ms: int) -> None:
        """A run has started (milliseconds of Unix time)."""

    def log(self, run: ToldRun, points: Sequence[Point]) -> None:
        """Something was measured."""

    def end(self, run: ToldRun, state: str, error: str | None) -> None:
        """A run is over; what was told of it is to be kept by the time this returns."""

    def close(self) -> None:
        """Nothing more is told."""
