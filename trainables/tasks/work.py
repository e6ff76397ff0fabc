"""What rows put through a base, told before anything is loaded: what an estimate rests on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from trainables.tasks.split import Pass


@dataclass(frozen=True)
class Work:
    """What goes through a base: `tokens`, padding included, in so many `passes`.

    `seen` is the sum over tokens of how many each looks at, padding included; `outputs` at how many
    places a head of the next token computes. Of what is written, `steps` passes add a token to each
    row of a batch and `written` tokens come of them, where every text is as long as it may be;
    `share` of them do where it ends as its reference does.
    """

    tokens: float = 0.0
    passes: float = 0.0
    seen: float = 0.0
    outputs: float = 0.0
    steps: float = 0.0
    written: float = 0.0
    share: float = 1.0

    @classmethod
    def of(cls, lines: Iterable[tuple[int, int, int]]) -> Self:
        """Of passes of so many lines, each of so many positions, with so many of the head's."""
        shapes = list(lines)
        return cls(
            tokens=sum(rows * positions for rows, positions, _ in shapes),
            passes=len(shapes),
            seen=sum(rows * positions**2 for rows, positions, _ in shapes),
            outputs=sum(outputs for _, _, outputs in shapes),
        )

    @classmethod
    def of_tokens(cls, passes: Iterable[Pass]) -> Self:
        """Of the passes that token ids go through a base in."""
        return cls.of(_shape(each) for each in passes)

    def __add__(self, other: Work) -> Work:
        """Both, one after the other."""
        return Work(
            self.tokens + other.tokens,
            self.passes + other.passes,
            self.seen + other.seen,
            self.outputs + other.outputs,
            self.steps + other.steps,
            self.written + other.written,
            min(self.share, other.share),
        )

    def times(self, factor: float) -> Work:
        """So many times as much."""
        return Work(
            self.tokens * factor,
            self.passes * factor,
            self.seen * factor,
            self.outputs * factor,
            self.steps * factor,
            self.written * factor,
            self.share,
        )


def _shape(batch: Pass) -> tuple[int, int, int]:
    rows, positions = batch["input_ids"].shape
    kept: Any = batch.get("logits_to_keep", ())
    return int(rows), int(positions), int(rows) * len(kept)
