"""What a search looks for: a metric, and whether more or less of it is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Objective:
    """A metric and the direction that is better, ``max`` or ``min``."""

    metric: str
    mode: Mode

    def gain(self, value: float) -> float:
        """The value with its sign turned where less is better: more of it is better always."""
        return value if self.mode == "max" else -value

    def is_better(self, value: float, than: float) -> bool:
        """Whether one value is better than another; equal ones are not."""
        return self.gain(value) > self.gain(than)
